	.arch armv8-a
	.file	"calls.c"
	.text
	.align	2
	.p2align 4,,11
	.global	set_handler
	.type	set_handler, %function
set_handler:
.LFB0:
	.cfi_startproc
	adrp	x1, .LANCHOR0
	str	x0, [x1, #:lo12:.LANCHOR0]
	ret
	.cfi_endproc
.LFE0:
	.size	set_handler, .-set_handler
	.align	2
	.p2align 4,,11
	.global	forward
	.type	forward, %function
forward:
.LFB1:
	.cfi_startproc
	adrp	x1, .LANCHOR0
	add	w0, w0, 1
	ldr	x1, [x1, #:lo12:.LANCHOR0]
	mov	x16, x1
	br	x16
	.cfi_endproc
.LFE1:
	.size	forward, .-forward
	.section	.rodata.str1.8,"aMS",@progbits,1
	.align	3
.LC0:
	.string	"%d"
	.text
	.align	2
	.p2align 4,,11
	.global	count_down
	.type	count_down, %function
count_down:
.LFB2:
	.cfi_startproc
	stp	x29, x30, [sp, -32]!
	.cfi_def_cfa_offset 32
	.cfi_offset 29, -32
	.cfi_offset 30, -24
	mrs	x3, tpidr_el0
	adrp	x4, .LC0
	mov	x29, sp
	str	x19, [sp, 16]
	.cfi_offset 19, -16
	mov	w19, w0
	adrp	x0, :tlsdesc:depth
	ldr	x1, [x0, #:tlsdesc_lo12:depth]
	add	x0, x0, :tlsdesc_lo12:depth
	.tlsdesccall	depth
	blr	x1
	ldr	w2, [x3, x0]
	mov	w1, w19
	add	w2, w2, 1
	str	w2, [x3, x0]
	add	x0, x4, :lo12:.LC0
	bl	log_line
	mov	w0, 0
	cmp	w19, 0
	ble	.L4
	adrp	x1, .LANCHOR0
	sub	w0, w19, #1
	ldr	x1, [x1, #:lo12:.LANCHOR0]
	blr	x1
	adrp	x1, :got:errors
	ldr	x1, [x1, :got_lo12:errors]
	ldr	w1, [x1]
	add	w0, w0, w1
.L4:
	ldr	x19, [sp, 16]
	ldp	x29, x30, [sp], 32
	.cfi_restore 30
	.cfi_restore 29
	.cfi_restore 19
	.cfi_def_cfa_offset 0
	ret
	.cfi_endproc
.LFE2:
	.size	count_down, .-count_down
	.align	2
	.p2align 4,,11
	.global	third_error
	.type	third_error, %function
third_error:
.LFB3:
	.cfi_startproc
	adrp	x0, :got:errors
	ldr	x0, [x0, :got_lo12:errors]
	add	x0, x0, 8
	ret
	.cfi_endproc
.LFE3:
	.size	third_error, .-third_error
	.align	2
	.p2align 4,,11
	.global	total
	.type	total, %function
total:
.LFB4:
	.cfi_startproc
	fmov	d0, 5.0e-1
	cbz	x0, .L9
	adrp	x1, .LC1
	ldr	d2, [x1, #:lo12:.LC1]
	.p2align 3,,7
.L11:
	ldr	d1, [x0, 16]
	ldr	x0, [x0]
	fmadd	d0, d1, d2, d0
	cbnz	x0, .L11
.L9:
	ret
	.cfi_endproc
.LFE4:
	.size	total, .-total
	.align	2
	.p2align 4,,11
	.global	sum
	.type	sum, %function
sum:
.LFB5:
	.cfi_startproc
	sub	sp, sp, #96
	.cfi_def_cfa_offset 96
	mov	w8, -56
	add	x10, sp, 32
	str	x10, [sp, 16]
	stp	w8, wzr, [sp, 24]
	stp	x1, x2, [sp, 40]
	add	x1, sp, 96
	stp	x1, x1, [sp]
	stp	x3, x4, [sp, 56]
	stp	x5, x6, [sp, 72]
	str	x7, [sp, 88]
	cmp	w0, 0
	ble	.L20
	add	x2, sp, 96
	sub	w9, w0, #1
	mov	w1, w8
	mov	x5, x2
	mov	w0, 0
	b	.L19
	.p2align 2,,3
.L23:
	mov	x3, x2
	sub	w9, w9, #1
	add	x2, x2, 8
	ldr	w3, [x3]
	add	w0, w0, w3
	cmn	w9, #1
	beq	.L14
.L19:
	add	w4, w1, 8
	tbz	w1, #31, .L23
	add	x3, x5, w1, sxtw
	mov	w1, w4
	cmp	w4, 0
	bgt	.L23
	ldr	w3, [x3]
	sub	w9, w9, #1
	add	w0, w0, w3
	cmn	w9, #1
	bne	.L19
.L14:
	add	sp, sp, 96
	.cfi_remember_state
	.cfi_def_cfa_offset 0
	ret
	.p2align 2,,3
.L20:
	.cfi_restore_state
	mov	w0, 0
	add	sp, sp, 96
	.cfi_def_cfa_offset 0
	ret
	.cfi_endproc
.LFE5:
	.size	sum, .-sum
	.global	depth
	.section	.rodata.cst8,"aM",@progbits,8
	.align	3
.LC1:
	.word	630506365
	.word	1420970413
	.bss
	.align	3
	.set	.LANCHOR0,. + 0
	.type	handler, %object
	.size	handler, 8
handler:
	.zero	8
	.section	.tbss,"awT",@nobits
	.align	2
	.type	depth, %object
	.size	depth, 4
depth:
	.zero	4
	.ident	"GCC: (Debian 12.2.0-14) 12.2.0"
	.section	.note.GNU-stack,"",@progbits
