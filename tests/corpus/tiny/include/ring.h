#ifndef RING_H
#define RING_H

#include <stddef.h>

/* A fixed ring of integers. */
struct ring {
    int items[64];
    size_t head;
    size_t count;
};

/* Number of places left. */
static inline size_t ring_room(const struct ring *ring)
{
    return 64 - ring->count;
}

int ring_push(struct ring *ring, int item);
int ring_pop(struct ring *ring, int *item);
long ring_sum(const struct ring *ring);

#endif
