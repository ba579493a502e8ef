/* Every kind of reference that a linker fills in, and every kind of instruction that compilers and
   disassemblers spell in their own ways: constants of all widths, selects, string operations, shifts,
   floats, vectors, jump tables, computed jumps, thread-local data. */
typedef unsigned char u8;
typedef unsigned int u32;
typedef unsigned long u64;

extern int external(int, const char *);
extern int table[];
extern __thread int per_thread;
static int state[64];
static const double scales[] = {1.5, -2.25, 1e10};
int shared = 7;
int (*handler)(int);

static __attribute__((noinline)) int local(int x) { return x * 31 + state[x & 63]; }

int calls(int x) { return local(x) + external(x, "text") + handler(x); }

int tail(int x) { return external(x + 1, "more"); }

int globals(int i) {
  shared += table[i];
  state[i] = shared;
  return per_thread + state[i ^ 1];
}

double floats(double x, int n, float f) { return x * scales[n] + (double)f - n / 3.0 + (int)x; }

u32 constants(u32 x) {
  x ^= 0xdeadbeef;
  x *= 2863311531u;
  x += 65536;
  x &= 0xfffffff0u;
  return x - 4096;
}

u64 wide(u64 x) {
  x ^= 0x0123456789abcdefUL;
  x *= 0xaaaaaaaaaaaaaaabUL;
  return x >> 1 | x << 63;
}

int selects(int a, int b) {
  int m = a < b ? a : b;
  return m < 0 ? -m : m + (a == b) - (a > 255);
}

const char *scan(const char *s, const char *start) {
  while (s > start && s[-1] != '\n') s--;
  return s;
}

int bits(u64 x, u32 y) {
  if (x & 1) return -22;
  if (y & 0x80000000u) return -1;
  return __builtin_ctzl(x | 4);
}

int choose(int k) {
  switch (k) {
    case 0: return external(1, "a");
    case 1: return shared * 3;
    case 2: return -17;
    case 3: return local(9);
    case 4: return external(k, "b") + 2;
    case 5: return state[3];
    case 6: return 1 << k;
    default: return 1000000;
  }
}

void copy(u8 *to, const u8 *from) {
  for (int i = 0; i < 200; i++) to[i] = from[i];
}

long sum(const int *a, int n) {
  long s = 0;
  for (int i = 0; i < n; i++) s += a[i] * 5L;
  return s;
}

struct wide {
  u64 a[9];
  u8 tag;
  short s;
};

struct wide structs(const struct wide *w) {
  struct wide x = *w;
  x.tag = 200;
  x.s = -3;
  return x;
}

void nothing(int x) { (void)x; }

int loops(int n) {
  int c = 0;
  while (n > 1) {
    n = n & 1 ? 3 * n + 1 : n / 2;
    c++;
  }
  return c;
}

u8 bytes(u8 a, signed char b) { return (u8)(a << 3 | a >> 5) ^ (u8)(b / 7); }

int goes(int i) {
  static void *const to[] = {&&one, &&two};
  goto *to[i & 1];
one:
  return 11;
two:
  return shared;
}

u32 field(u32 a, u32 b) { return (a & ~0xff0u) | (b & 0xff) << 4; }
