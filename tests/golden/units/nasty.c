/* Code whose assembly is hard to take apart: tests/corpus/test_reassembly.py assembles it again. */

extern int other(int, ...);
extern void fatal(const char *) __attribute__((cold, noreturn));
extern void *where(void);
extern int counter;
__thread int own;
extern __thread int shared;

int cold_part(int *p, int n)
{
    if (__builtin_expect(n < 0, 0))
        fatal("negative; # not a comment // nor this /* nor this");
    for (int i = 0; i < n; i++) {
        if (p[i] > 100000)
            fatal("large");
        p[i] = other(p[i], "x") + counter;
    }
    return p[0];
}

__attribute__((cold)) int cold_throughout(int n)
{
    if (n > 3)
        fatal("cold");
    return other(n);
}

int dense_switch(int op, int a, int b)
{
    switch (op) {
    case 0: return a + b;
    case 1: return a - other(b);
    case 2: return a * b;
    case 3: if (!b) fatal("by zero"); return a / b;
    case 4: return other(a) & b;
    case 5: return a | b;
    case 6: counter++; return a ^ b;
    case 7: return a << b;
    case 8: return own + a;
    }
    return -1;
}

int computed_goto(const unsigned char *code, int x)
{
    static const void *const steps[] = {&&halt, &&add, &&twice, &&call};
    goto *steps[*code++];
add:
    x += 7;
    goto *steps[*code++];
twice:
    x *= 2;
    goto *steps[*code++];
call:
    x = other(x);
    goto *steps[*code++];
halt:
    return x;
}

static __attribute__((noinline)) int partial(int *p, int n)
{
    if (!p)
        return 0;
    for (int i = 0; i < n; i++) {
        p[i] = other(i);
        p[i + 1] += other(p[i]);
        p[i + 1] += other(p[i] + 1);
    }
    return p[3];
}
int uses_partial(int *p) { return partial(p, 5); }
int uses_partial_too(int *p) { return partial(p + 1, 5); }

double floats(double x, float y) { return x * 3.25 + y * 1.5f + (x > 1e300 ? 2.5e-7 : -0.0); }
long double long_floats(long double x) { return x * 2.5L; }
unsigned long big(unsigned long x) { return x * 0x123456789abcdefUL + 0xffff0000ffff0000UL; }
int threads(int x) { own += x; return shared + own; }
int *address(int x) { return x ? &shared : &own; }
void vectors(float *restrict a, const float *restrict b, int n)
{
    for (int i = 0; i < n; i++)
        a[i] = a[i] * b[i] + 1.0f;
}
void copy(char *a, const char *b) { __builtin_memcpy(a, b, 1000); __builtin_memset(a + 1000, 0, 300); }
int variable(int n) { char text[n + 1]; return other(n, text, &text[n]); }
int (*pointers[])(int) = {cold_throughout, threads};
int indirect(int i) { return pointers[i](i) + other(i, dense_switch, "text"); }
int tail(int x) { return cold_throughout(x + 1); }
_Bool atomics(int *p) { __atomic_add_fetch(p, 3, 5); return __atomic_exchange_n(p, 7, 5) == 3; }
__attribute__((section(".text.far"))) int elsewhere(int x) { if (x < 0) fatal("far"); return other(x) + 1; }
int with_nested(int x)
{
    if (x == 3)
        return __builtin_popcountl(x) + (int)(long)__builtin_return_address(0);
    return __builtin_bswap32(x) % 10;
}
__attribute__((noinline)) int endless(void) { for (;;) counter++; }
void empty(void) {}
void unreachable(void) { __builtin_unreachable(); }

int numeric_labels(int x)
{
    __asm__ volatile("1:\n\tnop\n2:\n\t" JUMP " 1f\n\t" JUMP " 2b\n1:\n\tnop; " JUMP " 1b" : "+r"(x));
    __asm__ volatile("3: " JUMP " 3b\n" : : "r"(x));
    return x + other(x);
}

int data_in_code(int x)
{
    __asm__ volatile(JUMP " 1f\n\t.byte 1, 2,3 , 0x04\n\t.asciz \"a;b#c//d \\\"e\"\n\t.zero 4\n\t.balign 4\n1:" : "+r"(x));
    __asm__ volatile(JUMP " 5f\n\t.long 5f - 4f, 1b - .\n4:\n\t.skip 4\n5:");
    __asm__ volatile(".rept 3\n\tnop\n\t.endr\n\t.if 1 == 2\n\t.error \"no\"\n\t.else\n\tnop\n\t.endif");
    __asm__ volatile(".set here, 5\n\tother_way = here + 3\n\t.byte here, other_way, 0, here");
    __asm__ volatile(".macro twice_%= what\n\t\\what\n\t\\what\n\t.endm\n\ttwice_%= nop\n\t.purgem twice_%=" : :);
    return other(x);
}

int other_sections(int x)
{
    __asm__ volatile("1:\tnop\n\t.pushsection .fixup,\"ax\"\n2:\tnop\n\t" JUMP " 3f\n\t.popsection\n"
                     "\t.pushsection __ex_table,\"a\"\n\t.balign 8\n\t.quad 1b, 2b\n\t.popsection\n3:\n\tnop");
    __asm__ volatile(".section .note.probe,\"\",%%note\n\t.long 1,2,3\n\t.previous\n\tnop" : :);
    __asm__ volatile(".section .text.moved,\"ax\"\n7:\tnop\n\t" JUMP " 8f\n\t.previous\n8:\tnop");
    if (x < 0)
        fatal("sections");
    return other(x) + x;
}

int jumping_asm(int x)
{
    __asm__ goto(JUMP " %l[out]\n\t.pushsection .rodata\n\t.quad %l[out]\n\t.popsection" : : : : out);
    x = other(x);
out:
    return x;
}

#if defined __x86_64__
int prefixes(int *p, char *a, const char *b, long n)
{
    __asm__ volatile("lock; incl %0\n\tlock\n\tdecl %0\n\tlock incl %0" : "+m"(*p));
    __asm__ volatile("rep; nop\n\trep movsb\n\trep ; stosb" : "+D"(a), "+S"(b), "+c"(n) : : "memory");
    __asm__ volatile("cmpb $'a', (%0)\n\tcmpb $';', (%0)\n\tcmpb $'#', 1(%0)" : : "r"(a) : "cc");
    __asm__ volatile(".byte 0x66\n\tnop\n\t.byte 0xf3, 0x90; jmp .+2; jmp . + 2" : :);
    __asm__ volatile("pushq $1f\n\tpopq %%rax\n1:" : : : "rax");
    __asm__ volatile("movl %%fs:0, %%eax\n\tmovq %%fs:(%%rax,%%rax,1), %%rax" : : : "rax");
    __asm__ volatile(".intel_syntax noprefix\n\tmov eax, [rdi + rax * 4 + 8]\n\t.att_syntax prefix" : : : "rax");
    return *p + a[0];
}
#elif defined __aarch64__ && !defined __clang__
int extensions(unsigned x, unsigned long y)
{
    __asm__ volatile(".arch_extension crc\n\tcrc32x %w0, %w0, %1" : "+r"(x) : "r"(y));
    __asm__ volatile("ldr %0, =0x123456789abcdef\n\tb 1f\n\t.ltorg\n1:" : "=r"(y));
    __asm__ volatile(".inst 0xd503201f\n\thint #0; mov %w0, #';'" : "=r"(x));
    __asm__ volatile("adr %0, 1f\n1:\tldr %0, [%0, #:lo12:0]" : "=r"(y));
    return x + (int)y + other(1);
}
__attribute__((target("+sve"))) int target(int x) { __asm__ volatile("ptrue p0.s" : : : "memory"); return other(x); }
#elif defined __riscv && !defined __clang__
int options(int x)
{
    __asm__ volatile(".option push\n\t.option norvc\n\taddi %0, %0, 1\n\tj 1f\n1:\n\t.option pop" : "+r"(x));
    __asm__ volatile(".option push\n\t.option norelax\n\tla %0, counter\n\t.option pop\n\tli %0, 0x12345678" : "=r"(x));
    __asm__ volatile(".insn r 0x33, 0, 0, %0, %0, %0\n\t.insn 0x13" : "+r"(x));
    return x + other(x);
}
#endif
