#include "ring.h"

/* Move as many items as fit; the number moved. */
int ring_drain(struct ring *from, struct ring *to)
{
    int moved = 0, item;
    while (ring_room(to) > 0 && ring_pop(from, &item)) {
        ring_push(to, item);
        moved++;
    }
    return moved;
}
