	.text
	.file	"calls.c"
	.globl	set_handler                     // -- Begin function set_handler
	.p2align	2
	.type	set_handler,@function
set_handler:                            // @set_handler
	.cfi_startproc
// %bb.0:
	adrp	x8, handler
	str	x0, [x8, :lo12:handler]
	ret
.Lfunc_end0:
	.size	set_handler, .Lfunc_end0-set_handler
	.cfi_endproc
                                        // -- End function
	.globl	forward                         // -- Begin function forward
	.p2align	2
	.type	forward,@function
forward:                                // @forward
	.cfi_startproc
// %bb.0:
	adrp	x8, handler
	add	w0, w0, #1
	ldr	x1, [x8, :lo12:handler]
	br	x1
.Lfunc_end1:
	.size	forward, .Lfunc_end1-forward
	.cfi_endproc
                                        // -- End function
	.globl	count_down                      // -- Begin function count_down
	.p2align	2
	.type	count_down,@function
count_down:                             // @count_down
	.cfi_startproc
// %bb.0:
	stp	x29, x30, [sp, #-32]!           // 16-byte Folded Spill
	.cfi_def_cfa_offset 32
	str	x19, [sp, #16]                  // 8-byte Folded Spill
	mov	x29, sp
	.cfi_def_cfa w29, 32
	.cfi_offset w19, -16
	.cfi_offset w30, -24
	.cfi_offset w29, -32
	mrs	x8, TPIDR_EL0
	mov	w19, w0
	adrp	x0, .L.str
	add	x0, x0, :lo12:.L.str
	add	x8, x8, :tprel_hi12:depth
	mov	w1, w19
	add	x8, x8, :tprel_lo12_nc:depth
	ldr	w9, [x8]
	add	w9, w9, #1
	str	w9, [x8]
	bl	log_line
	subs	w0, w19, #1
	b.lt	.LBB2_2
// %bb.1:
	adrp	x8, handler
	ldr	x8, [x8, :lo12:handler]
	blr	x8
	adrp	x8, :got:errors
	ldr	x8, [x8, :got_lo12:errors]
	ldr	w8, [x8]
	add	w0, w8, w0
	b	.LBB2_3
.LBB2_2:
	mov	w0, wzr
.LBB2_3:
	.cfi_def_cfa wsp, 32
	ldr	x19, [sp, #16]                  // 8-byte Folded Reload
	ldp	x29, x30, [sp], #32             // 16-byte Folded Reload
	.cfi_def_cfa_offset 0
	.cfi_restore w19
	.cfi_restore w30
	.cfi_restore w29
	ret
.Lfunc_end2:
	.size	count_down, .Lfunc_end2-count_down
	.cfi_endproc
                                        // -- End function
	.globl	third_error                     // -- Begin function third_error
	.p2align	2
	.type	third_error,@function
third_error:                            // @third_error
	.cfi_startproc
// %bb.0:
	adrp	x8, :got:errors
	ldr	x8, [x8, :got_lo12:errors]
	add	x0, x8, #8
	ret
.Lfunc_end3:
	.size	third_error, .Lfunc_end3-third_error
	.cfi_endproc
                                        // -- End function
	.section	.rodata.cst8,"aM",@progbits,8
	.p2align	3, 0x0                          // -- Begin function total
.LCPI4_0:
	.xword	0x54b249ad2594c37d              // double 1.0E+100
	.text
	.globl	total
	.p2align	2
	.type	total,@function
total:                                  // @total
	.cfi_startproc
// %bb.0:
	fmov	d0, #0.50000000
	cbz	x0, .LBB4_3
// %bb.1:
	adrp	x8, .LCPI4_0
	ldr	d1, [x8, :lo12:.LCPI4_0]
.LBB4_2:                                // =>This Inner Loop Header: Depth=1
	ldr	d2, [x0, #16]
	ldr	x0, [x0]
	fmadd	d0, d2, d1, d0
	cbnz	x0, .LBB4_2
.LBB4_3:
	ret
.Lfunc_end4:
	.size	total, .Lfunc_end4-total
	.cfi_endproc
                                        // -- End function
	.globl	sum                             // -- Begin function sum
	.p2align	2
	.type	sum,@function
sum:                                    // @sum
	.cfi_startproc
// %bb.0:
	sub	sp, sp, #224
	.cfi_def_cfa_offset 224
	.cfi_remember_state
	mov	x9, #-56                        // =0xffffffffffffffc8
	mov	x10, sp
	add	x11, sp, #136
	movk	x9, #65408, lsl #32
	add	x10, x10, #128
	cmp	w0, #1
	stp	x10, x9, [sp, #208]
	add	x9, x11, #56
	add	x10, sp, #224
	stp	x1, x2, [sp, #136]
	stp	x3, x4, [sp, #152]
	stp	x5, x6, [sp, #168]
	stp	q0, q1, [sp]
	stp	q2, q3, [sp, #32]
	stp	q4, q5, [sp, #64]
	stp	q6, q7, [sp, #96]
	str	x9, [sp, #200]
	stp	x7, x10, [sp, #184]
	b.lt	.LBB5_9
// %bb.1:
	ldp	x10, x9, [sp, #192]
	mov	w8, w0
	ldr	w12, [sp, #216]
	mov	w0, wzr
	add	w8, w8, #1
	b	.LBB5_4
.LBB5_2:                                //   in Loop: Header=BB5_4 Depth=1
	add	x12, x9, w12, sxtw
	mov	x13, x10
	mov	x10, x12
.LBB5_3:                                //   in Loop: Header=BB5_4 Depth=1
	ldr	w10, [x10]
	sub	w8, w8, #1
	mov	w12, w11
	cmp	w8, #1
	add	w0, w10, w0
	mov	x10, x13
	b.le	.LBB5_8
.LBB5_4:                                // =>This Inner Loop Header: Depth=1
	tbnz	w12, #31, .LBB5_6
// %bb.5:                               //   in Loop: Header=BB5_4 Depth=1
	mov	w11, w12
	b	.LBB5_7
.LBB5_6:                                //   in Loop: Header=BB5_4 Depth=1
	add	w11, w12, #8
	cmn	w12, #8
	str	w11, [sp, #216]
	b.le	.LBB5_2
.LBB5_7:                                //   in Loop: Header=BB5_4 Depth=1
	add	x13, x10, #8
	str	x13, [sp, #192]
	b	.LBB5_3
.LBB5_8:
	add	sp, sp, #224
	.cfi_def_cfa_offset 0
	ret
.LBB5_9:
	.cfi_restore_state
	mov	w0, wzr
	add	sp, sp, #224
	.cfi_def_cfa_offset 0
	ret
.Lfunc_end5:
	.size	sum, .Lfunc_end5-sum
	.cfi_endproc
                                        // -- End function
	.type	handler,@object                 // @handler
	.local	handler
	.comm	handler,8,8
	.type	depth,@object                   // @depth
	.section	.tbss,"awT",@nobits
	.globl	depth
	.p2align	2, 0x0
depth:
	.word	0                               // 0x0
	.size	depth, 4

	.type	.L.str,@object                  // @.str
	.section	.rodata.str1.1,"aMS",@progbits,1
.L.str:
	.asciz	"%d"
	.size	.L.str, 3

	.ident	"Debian clang version 19.1.7 (3~deb12u1)"
	.section	".note.GNU-stack","",@progbits
	.addrsig
	.addrsig_sym errors
