	.file	"calls.c"
	.text
	.p2align 4
	.globl	set_handler
	.type	set_handler, @function
set_handler:
.LFB0:
	.cfi_startproc
	movq	%rdi, handler(%rip)
	ret
	.cfi_endproc
.LFE0:
	.size	set_handler, .-set_handler
	.p2align 4
	.globl	forward
	.type	forward, @function
forward:
.LFB1:
	.cfi_startproc
	addl	$1, %edi
	jmp	*handler(%rip)
	.cfi_endproc
.LFE1:
	.size	forward, .-forward
	.section	.rodata.str1.1,"aMS",@progbits,1
.LC0:
	.string	"%d"
	.text
	.p2align 4
	.globl	count_down
	.type	count_down, @function
count_down:
.LFB2:
	.cfi_startproc
	pushq	%rbx
	.cfi_def_cfa_offset 16
	.cfi_offset 3, -16
	movl	%edi, %esi
	xorl	%eax, %eax
	movl	%edi, %ebx
	addl	$1, %fs:depth@tpoff
	leaq	.LC0(%rip), %rdi
	call	log_line@PLT
	xorl	%eax, %eax
	testl	%ebx, %ebx
	jle	.L4
	leal	-1(%rbx), %edi
	call	*handler(%rip)
	addl	errors(%rip), %eax
.L4:
	popq	%rbx
	.cfi_def_cfa_offset 8
	ret
	.cfi_endproc
.LFE2:
	.size	count_down, .-count_down
	.p2align 4
	.globl	third_error
	.type	third_error, @function
third_error:
.LFB3:
	.cfi_startproc
	leaq	8+errors(%rip), %rax
	ret
	.cfi_endproc
.LFE3:
	.size	third_error, .-third_error
	.p2align 4
	.globl	total
	.type	total, @function
total:
.LFB4:
	.cfi_startproc
	movsd	.LC1(%rip), %xmm0
	testq	%rdi, %rdi
	je	.L13
	movsd	.LC2(%rip), %xmm2
	.p2align 4,,10
	.p2align 3
.L12:
	movsd	16(%rdi), %xmm1
	movq	(%rdi), %rdi
	mulsd	%xmm2, %xmm1
	addsd	%xmm1, %xmm0
	testq	%rdi, %rdi
	jne	.L12
	ret
	.p2align 4,,10
	.p2align 3
.L13:
	ret
	.cfi_endproc
.LFE4:
	.size	total, .-total
	.p2align 4
	.globl	sum
	.type	sum, @function
sum:
.LFB5:
	.cfi_startproc
	leaq	8(%rsp), %rax
	movq	%rsi, -40(%rsp)
	movq	%rax, -64(%rsp)
	leaq	-48(%rsp), %rax
	movq	%rax, -56(%rsp)
	leal	-1(%rdi), %eax
	movq	%rdx, -32(%rsp)
	movq	%rcx, -24(%rsp)
	movq	%r8, -16(%rsp)
	movq	%r9, -8(%rsp)
	movl	$8, -72(%rsp)
	testl	%edi, %edi
	jle	.L20
	movq	-56(%rsp), %r8
	movl	$8, %ecx
	leaq	8(%rsp), %rdi
	xorl	%esi, %esi
	jmp	.L19
	.p2align 4,,10
	.p2align 3
.L22:
	movl	%ecx, %edx
	addl	$8, %ecx
	addq	%r8, %rdx
	addl	(%rdx), %esi
	subl	$1, %eax
	jb	.L15
.L19:
	cmpl	$47, %ecx
	jbe	.L22
	movq	%rdi, %rdx
	addq	$8, %rdi
	addl	(%rdx), %esi
	subl	$1, %eax
	jnb	.L19
.L15:
	movl	%esi, %eax
	ret
	.p2align 4,,10
	.p2align 3
.L20:
	xorl	%esi, %esi
	movl	%esi, %eax
	ret
	.cfi_endproc
.LFE5:
	.size	sum, .-sum
	.globl	depth
	.section	.tbss,"awT",@nobits
	.align 4
	.type	depth, @object
	.size	depth, 4
depth:
	.zero	4
	.local	handler
	.comm	handler,8,8
	.section	.rodata.cst8,"aM",@progbits,8
	.align 8
.LC1:
	.long	0
	.long	1071644672
	.align 8
.LC2:
	.long	630506365
	.long	1420970413
	.ident	"GCC: (Debian 12.2.0-14+deb12u1) 12.2.0"
	.section	.note.GNU-stack,"",@progbits
