	.arch armv8-a
	.file	"state_machine.c"
	.text
	.section	.rodata.str1.1,"aMS",@progbits,1
.LC0:
	.string	"idle; #0"
.LC1:
	.string	"stop"
	.text
	.align	2
	.global	state_machine
	.type	state_machine, %function
state_machine:
.LFB0:
	.cfi_startproc
	mov	w2, w0
	mov	w0, w1
	cmp	w2, 3
	beq	.L2
	bgt	.L3
	cmp	w2, 1
	beq	.L4
	cmp	w2, 2
	beq	.L5
	cbz	w2, .L6
.L11:
	mov	w0, -524288
.L1:
	ret
.L3:
	cmp	w2, 5
	beq	.L8
	cmp	w2, 6
	beq	.L9
	cmp	w2, 4
	bne	.L11
	adrp	x0, .LANCHOR0
	mov	w1, 5
	str	w1, [x0, #:lo12:.LANCHOR0]
	mov	w0, 9
	b	.L1
.L6:
	adrp	x1, .LC0
	add	x1, x1, :lo12:.LC0
	mov	w0, 1
.L12:
	b	report
.L4:
	adrp	x2, .LANCHOR0
	ldr	w1, [x2, #:lo12:.LANCHOR0]
	add	w1, w1, w0
	mov	w0, 22
	str	w1, [x2, #:lo12:.LANCHOR0]
	b	.L1
.L5:
	adrp	x0, .LANCHOR0
	ldr	w0, [x0, #:lo12:.LANCHOR0]
	b	.L1
.L2:
	lsl	w0, w1, 3
	b	.L1
.L8:
	adrp	x1, .LC1
	add	x1, x1, :lo12:.LC1
	b	.L12
.L9:
	mov	w1, 9029
	movk	w1, 0x1, lsl 16
	mul	w0, w0, w1
	b	.L1
	.cfi_endproc
.LFE0:
	.size	state_machine, .-state_machine
	.bss
	.align	2
	.set	.LANCHOR0,. + 0
	.type	visits, %object
	.size	visits, 4
visits:
	.zero	4
	.ident	"GCC: (Debian 12.2.0-14) 12.2.0"
	.section	.note.GNU-stack,"",@progbits
