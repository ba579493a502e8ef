	.file	"state_machine.c"
	.text
	.section	.rodata.str1.1,"aMS",@progbits,1
.LC0:
	.string	"idle; #0"
.LC1:
	.string	"stop"
	.section	.text.unlikely,"ax",@progbits
.LCOLDB2:
	.text
.LHOTB2:
	.p2align 4
	.globl	state_machine
	.type	state_machine, @function
state_machine:
.LFB0:
	.cfi_startproc
	movl	%edi, %edx
	movl	%esi, %edi
	cmpl	$6, %edx
	ja	.L11
	leaq	.L4(%rip), %rcx
	movslq	(%rcx,%rdx,4), %rax
	addq	%rcx, %rax
	jmp	*%rax
	.section	.rodata
	.align 4
	.align 4
.L4:
	.long	.L10-.L4
	.long	.L9-.L4
	.long	.L8-.L4
	.long	.L7-.L4
	.long	.L6-.L4
	.long	.L5-.L4
	.long	.L3-.L4
	.text
	.p2align 4,,10
	.p2align 3
.L5:
	leaq	.LC1(%rip), %rsi
	jmp	report@PLT
	.p2align 4,,10
	.p2align 3
.L3:
	imull	$74565, %esi, %eax
	ret
	.p2align 4,,10
	.p2align 3
.L10:
	leaq	.LC0(%rip), %rsi
	movl	$1, %edi
	jmp	report@PLT
	.p2align 4,,10
	.p2align 3
.L9:
	addl	%esi, visits(%rip)
	movl	$22, %eax
	ret
	.p2align 4,,10
	.p2align 3
.L8:
	movl	visits(%rip), %eax
	ret
	.p2align 4,,10
	.p2align 3
.L7:
	leal	0(,%rsi,8), %eax
	ret
	.p2align 4,,10
	.p2align 3
.L6:
	movl	$5, visits(%rip)
	movl	$9, %eax
	ret
	.cfi_endproc
	.section	.text.unlikely
	.cfi_startproc
	.type	state_machine.cold, @function
state_machine.cold:
.LFSB0:
.L11:
	movl	$-524288, %eax
	ret
	.cfi_endproc
.LFE0:
	.text
	.size	state_machine, .-state_machine
	.section	.text.unlikely
	.size	state_machine.cold, .-state_machine.cold
.LCOLDE2:
	.text
.LHOTE2:
	.local	visits
	.comm	visits,4,4
	.ident	"GCC: (Debian 12.2.0-14+deb12u1) 12.2.0"
	.section	.note.GNU-stack,"",@progbits
