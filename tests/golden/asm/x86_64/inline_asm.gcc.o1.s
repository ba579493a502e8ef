	.file	"inline_asm_x86.c"
	.text
	.globl	spin
	.type	spin, @function
spin:
.LFB0:
	.cfi_startproc
	movl	%esi, %eax
#APP
# 3 "inline_asm_x86.c" 1
	1: lock; xaddl %eax, (%rdi) ; jz 2f
	/* wait: */ pause; jmp 1b
2:
# 0 "" 2
# 4 "inline_asm_x86.c" 1
	1: subl $0x10, %eax
	jnz 1b
# 0 "" 2
#NO_APP
	ret
	.cfi_endproc
.LFE0:
	.size	spin, .-spin
	.ident	"GCC: (Debian 12.2.0-14+deb12u1) 12.2.0"
	.section	.note.GNU-stack,"",@progbits
