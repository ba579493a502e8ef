	.text
	.file	"sum_arrays.c"
	.globl	sum_arrays                      // -- Begin function sum_arrays
	.p2align	2
	.type	sum_arrays,@function
sum_arrays:                             // @sum_arrays
	.cfi_startproc
// %bb.0:
	cmp	w3, #1
	b.lt	.LBB0_5
// %bb.1:
	cmp	w3, #7
	mov	w8, w3
	b.hi	.LBB0_6
// %bb.2:
	mov	x9, xzr
.LBB0_3:
	lsl	x12, x9, #2
	sub	x8, x8, x9
	add	x10, x2, x12
	add	x11, x1, x12
	add	x12, x0, x12
.LBB0_4:                                // =>This Inner Loop Header: Depth=1
	ldr	w9, [x12], #4
	subs	x8, x8, #1
	ldr	w13, [x11], #4
	add	w9, w13, w9
	str	w9, [x10], #4
	b.ne	.LBB0_4
.LBB0_5:
	ret
.LBB0_6:
	sub	x9, x2, x0
	cmp	x9, #32
	mov	x9, xzr
	b.lo	.LBB0_3
// %bb.7:
	sub	x10, x2, x1
	cmp	x10, #32
	b.lo	.LBB0_3
// %bb.8:
	and	x9, x8, #0x7ffffff8
	add	x10, x0, #16
	add	x11, x1, #16
	add	x12, x2, #16
	mov	x13, x9
.LBB0_9:                                // =>This Inner Loop Header: Depth=1
	ldp	q0, q3, [x11, #-16]
	subs	x13, x13, #8
	ldp	q1, q2, [x10, #-16]
	add	x10, x10, #32
	add	x11, x11, #32
	add	v0.4s, v0.4s, v1.4s
	add	v1.4s, v3.4s, v2.4s
	stp	q0, q1, [x12, #-16]
	add	x12, x12, #32
	b.ne	.LBB0_9
// %bb.10:
	cmp	x9, x8
	b.ne	.LBB0_3
	b	.LBB0_5
.Lfunc_end0:
	.size	sum_arrays, .Lfunc_end0-sum_arrays
	.cfi_endproc
                                        // -- End function
	.ident	"Debian clang version 19.1.7 (3~deb12u1)"
	.section	".note.GNU-stack","",@progbits
	.addrsig
