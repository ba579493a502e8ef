	.text
	.file	"state_machine.c"
	.globl	state_machine                   # -- Begin function state_machine
	.p2align	4, 0x90
	.type	state_machine,@function
state_machine:                          # @state_machine
	.cfi_startproc
# %bb.0:
	cmpl	$6, %edi
	ja	.LBB0_1
# %bb.2:
	movl	%edi, %eax
	leaq	.LJTI0_0(%rip), %rcx
	movslq	(%rcx,%rax,4), %rax
	addq	%rcx, %rax
	jmpq	*%rax
.LBB0_3:
	leaq	.L.str(%rip), %rsi
	movl	$1, %edi
	jmp	report@PLT                      # TAILCALL
.LBB0_7:
	movl	$5, visits(%rip)
	movl	$9, %eax
	retq
.LBB0_5:
	movl	visits(%rip), %eax
	retq
.LBB0_6:
	shll	$3, %esi
	movl	%esi, %eax
	retq
.LBB0_1:
	movl	$-524288, %eax                  # imm = 0xFFF80000
	retq
.LBB0_4:
	addl	%esi, visits(%rip)
	movl	$22, %eax
	retq
.LBB0_8:
	leaq	.L.str.1(%rip), %rax
	movl	%esi, %edi
	movq	%rax, %rsi
	jmp	report@PLT                      # TAILCALL
.LBB0_9:
	imull	$74565, %esi, %eax              # imm = 0x12345
	retq
.Lfunc_end0:
	.size	state_machine, .Lfunc_end0-state_machine
	.cfi_endproc
	.section	.rodata,"a",@progbits
	.p2align	2, 0x0
.LJTI0_0:
	.long	.LBB0_3-.LJTI0_0
	.long	.LBB0_4-.LJTI0_0
	.long	.LBB0_5-.LJTI0_0
	.long	.LBB0_6-.LJTI0_0
	.long	.LBB0_7-.LJTI0_0
	.long	.LBB0_8-.LJTI0_0
	.long	.LBB0_9-.LJTI0_0
                                        # -- End function
	.type	.L.str,@object                  # @.str
	.section	.rodata.str1.1,"aMS",@progbits,1
.L.str:
	.asciz	"idle; #0"
	.size	.L.str, 9

	.type	visits,@object                  # @visits
	.local	visits
	.comm	visits,4,4
	.type	.L.str.1,@object                # @.str.1
.L.str.1:
	.asciz	"stop"
	.size	.L.str.1, 5

	.ident	"Debian clang version 19.1.7 (3~deb12u1)"
	.section	".note.GNU-stack","",@progbits
	.addrsig
