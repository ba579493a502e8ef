	.file	"cold_and_clones.c"
	.text
	.section	.text.unlikely,"ax",@progbits
.LCOLDB0:
	.text
.LHOTB0:
	.p2align 4
	.type	slow, @function
slow:
.LFB1:
	.cfi_startproc
	pushq	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset 3, -16
	movq	%rdi, %rbx
	subq	$16, %rsp
	.cfi_def_cfa_offset 32
	testl	%esi, %esi
	js	.L3
.L2:
	andl	$7, %esi
	movl	(%rbx,%rsi,4), %eax
	addq	$16, %rsp
	.cfi_def_cfa_offset 16
	popq	%rbx
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.section	.text.unlikely
	.cfi_startproc
	.type	slow.cold, @function
slow.cold:
.LFSB1:
.L3:
	.cfi_def_cfa_offset 32
	.cfi_offset 3, -16
	movl	%esi, %edi
	movl	%esi, 12(%rsp)
	call	note@PLT
	movl	(%rbx), %edi
	call	note@PLT
	movl	12(%rsp), %esi
	jmp	.L2
	.cfi_endproc
.LFE1:
	.text
	.size	slow, .-slow
	.section	.text.unlikely
	.size	slow.cold, .-slow.cold
.LCOLDE0:
	.text
.LHOTE0:
	.p2align 4
	.type	scale.constprop.0, @function
scale.constprop.0:
.LFB4:
	.cfi_startproc
	leal	17(%rdi,%rdi,8), %eax
	ret
	.cfi_endproc
.LFE4:
	.size	scale.constprop.0, .-scale.constprop.0
	.p2align 4
	.type	scale.constprop.1, @function
scale.constprop.1:
.LFB5:
	.cfi_startproc
	leal	17(%rdi,%rdi,8), %eax
	ret
	.cfi_endproc
.LFE5:
	.size	scale.constprop.1, .-scale.constprop.1
	.p2align 4
	.globl	use
	.type	use, @function
use:
.LFB2:
	.cfi_startproc
	pushq	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset 3, -16
	movq	%rdi, %rdx
	movl	%esi, %edi
	call	scale.constprop.1
	movl	(%rdx), %edi
	movl	%eax, %ebx
	call	scale.constprop.0
	movq	%rdx, %rdi
	addl	%eax, %ebx
	call	slow
	addl	%ebx, %eax
	popq	%rbx
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
.LFE2:
	.size	use, .-use
	.section	.rodata.str1.1,"aMS",@progbits,1
.LC1:
	.string	"index"
	.section	.text.unlikely
.LCOLDB2:
	.text
.LHOTB2:
	.p2align 4
	.globl	checked
	.type	checked, @function
checked:
.LFB3:
	.cfi_startproc
	pushq	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset 3, -16
	movq	%rdi, %rbx
	subq	$16, %rsp
	.cfi_def_cfa_offset 32
	cmpl	$64, %esi
	jg	.L12
	movslq	%esi, %rsi
	leaq	(%rdi,%rsi,4), %rdx
	movl	(%rdx), %eax
	xorl	$-16711936, %eax
	movl	%eax, (%rdx)
	addq	$16, %rsp
	.cfi_def_cfa_offset 16
	popq	%rbx
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
	.section	.text.unlikely
	.cfi_startproc
	.type	checked.cold, @function
checked.cold:
.LFSB3:
.L12:
	.cfi_def_cfa_offset 32
	.cfi_offset 3, -16
	movl	%esi, %edi
	movl	%esi, 12(%rsp)
	call	note@PLT
	movl	(%rbx), %edi
	call	note@PLT
	movl	12(%rsp), %esi
	leaq	.LC1(%rip), %rdi
	call	fatal@PLT
	.cfi_endproc
.LFE3:
	.text
	.size	checked, .-checked
	.section	.text.unlikely
	.size	checked.cold, .-checked.cold
.LCOLDE2:
	.text
.LHOTE2:
	.ident	"GCC: (Debian 12.2.0-14+deb12u1) 12.2.0"
	.section	.note.GNU-stack,"",@progbits
