	.text
	.file	"state_machine.c"
	.globl	state_machine                   // -- Begin function state_machine
	.p2align	2
	.type	state_machine,@function
state_machine:                          // @state_machine
	.cfi_startproc
// %bb.0:
	mov	w8, w0
	cmp	w0, #2
	mov	w0, #-524288                    // =0xfff80000
	b.le	.LBB0_5
// %bb.1:
	cmp	w8, #4
	b.gt	.LBB0_9
// %bb.2:
	cmp	w8, #3
	b.eq	.LBB0_14
// %bb.3:
	cmp	w8, #4
	b.ne	.LBB0_12
// %bb.4:
	adrp	x8, visits
	mov	w9, #5                          // =0x5
	mov	w0, #9                          // =0x9
	str	w9, [x8, :lo12:visits]
	ret
.LBB0_5:
	cbz	w8, .LBB0_13
// %bb.6:
	cmp	w8, #1
	b.eq	.LBB0_16
// %bb.7:
	cmp	w8, #2
	b.ne	.LBB0_12
// %bb.8:
	adrp	x8, visits
	ldr	w0, [x8, :lo12:visits]
	ret
.LBB0_9:
	cmp	w8, #5
	b.eq	.LBB0_15
// %bb.10:
	cmp	w8, #6
	b.ne	.LBB0_12
// %bb.11:
	mov	w8, #9029                       // =0x2345
	movk	w8, #1, lsl #16
	mul	w0, w1, w8
.LBB0_12:
	ret
.LBB0_13:
	adrp	x1, .L.str
	add	x1, x1, :lo12:.L.str
	mov	w0, #1                          // =0x1
	b	report
.LBB0_14:
	lsl	w0, w1, #3
	ret
.LBB0_15:
	adrp	x8, .L.str.1
	add	x8, x8, :lo12:.L.str.1
	mov	w0, w1
	mov	x1, x8
	b	report
.LBB0_16:
	adrp	x8, visits
	mov	w0, #22                         // =0x16
	ldr	w9, [x8, :lo12:visits]
	add	w9, w9, w1
	str	w9, [x8, :lo12:visits]
	ret
.Lfunc_end0:
	.size	state_machine, .Lfunc_end0-state_machine
	.cfi_endproc
                                        // -- End function
	.type	.L.str,@object                  // @.str
	.section	.rodata.str1.1,"aMS",@progbits,1
.L.str:
	.asciz	"idle; #0"
	.size	.L.str, 9

	.type	visits,@object                  // @visits
	.local	visits
	.comm	visits,4,4
	.type	.L.str.1,@object                // @.str.1
.L.str.1:
	.asciz	"stop"
	.size	.L.str.1, 5

	.ident	"Debian clang version 19.1.7 (3~deb12u1)"
	.section	".note.GNU-stack","",@progbits
	.addrsig
