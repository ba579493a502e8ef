#include "ring.h"

/* Put an item at the end; 0 when the ring is full. */
int ring_push(struct ring *ring, int item)
{
    if (ring_room(ring) == 0)
        return 0;
    ring->items[(ring->head + ring->count) % 64] = item;
    ring->count++;
    return 1;
}

int ring_pop(struct ring *ring, int *item)
{
    if (ring->count == 0)
        return 0;
    *item = ring->items[ring->head];
    ring->head = (ring->head + 1) % 64;
    ring->count--;
    return 1;
}

long ring_sum(const struct ring *ring)
{
    long sum = 0;
    for (size_t i = 0; i < ring->count; i++)
        sum += ring->items[(ring->head + i) % 64];
    return sum;
}
