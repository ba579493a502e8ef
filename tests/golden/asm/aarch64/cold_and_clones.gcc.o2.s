	.arch armv8-a
	.file	"cold_and_clones.c"
	.text
	.align	2
	.p2align 4,,11
	.type	slow, %function
slow:
.LFB1:
	.cfi_startproc
	stp	x29, x30, [sp, -48]!
	.cfi_def_cfa_offset 48
	.cfi_offset 29, -48
	.cfi_offset 30, -40
	mov	x29, sp
	str	x19, [sp, 16]
	.cfi_offset 19, -32
	mov	x19, x0
	tbnz	w1, #31, .L5
.L2:
	and	x1, x1, 7
	ldr	w0, [x19, x1, lsl 2]
	ldr	x19, [sp, 16]
	ldp	x29, x30, [sp], 48
	.cfi_remember_state
	.cfi_restore 30
	.cfi_restore 29
	.cfi_restore 19
	.cfi_def_cfa_offset 0
	ret
.L5:
	.cfi_restore_state
	mov	w0, w1
	str	w1, [sp, 44]
	bl	note
	ldr	w0, [x19]
	bl	note
	ldr	w1, [sp, 44]
	b	.L2
	.cfi_endproc
.LFE1:
	.size	slow, .-slow
	.align	2
	.p2align 4,,11
	.type	scale.constprop.0, %function
scale.constprop.0:
.LFB4:
	.cfi_startproc
	add	w0, w0, w0, lsl 3
	add	w0, w0, 17
	ret
	.cfi_endproc
.LFE4:
	.size	scale.constprop.0, .-scale.constprop.0
	.align	2
	.p2align 4,,11
	.global	use
	.type	use, %function
use:
.LFB2:
	.cfi_startproc
	stp	x29, x30, [sp, -32]!
	.cfi_def_cfa_offset 32
	.cfi_offset 29, -32
	.cfi_offset 30, -24
	mov	x2, x0
	mov	w0, w1
	mov	x29, sp
	str	x19, [sp, 16]
	.cfi_offset 19, -16
	bl	scale.constprop.0
	mov	w19, w0
	ldr	w0, [x2]
	bl	scale.constprop.0
	add	w19, w19, w0
	mov	x0, x2
	bl	slow
	add	w0, w19, w0
	ldr	x19, [sp, 16]
	ldp	x29, x30, [sp], 32
	.cfi_restore 30
	.cfi_restore 29
	.cfi_restore 19
	.cfi_def_cfa_offset 0
	ret
	.cfi_endproc
.LFE2:
	.size	use, .-use
	.section	.rodata.str1.8,"aMS",@progbits,1
	.align	3
.LC0:
	.string	"index"
	.text
	.align	2
	.p2align 4,,11
	.global	checked
	.type	checked, %function
checked:
.LFB3:
	.cfi_startproc
	stp	x29, x30, [sp, -48]!
	.cfi_def_cfa_offset 48
	.cfi_offset 29, -48
	.cfi_offset 30, -40
	mov	x29, sp
	str	x19, [sp, 16]
	.cfi_offset 19, -32
	mov	x19, x0
	cmp	w1, 64
	bgt	.L12
	sxtw	x1, w1
	ldr	w0, [x0, x1, lsl 2]
	eor	w0, w0, -16711936
	str	w0, [x19, x1, lsl 2]
	ldr	x19, [sp, 16]
	ldp	x29, x30, [sp], 48
	.cfi_remember_state
	.cfi_restore 30
	.cfi_restore 29
	.cfi_restore 19
	.cfi_def_cfa_offset 0
	ret
.L12:
	.cfi_restore_state
	mov	w0, w1
	str	w1, [sp, 44]
	bl	note
	ldr	w0, [x19]
	bl	note
	ldr	w1, [sp, 44]
	adrp	x0, .LC0
	add	x0, x0, :lo12:.LC0
	bl	fatal
	.cfi_endproc
.LFE3:
	.size	checked, .-checked
	.ident	"GCC: (Debian 12.2.0-14) 12.2.0"
	.section	.note.GNU-stack,"",@progbits
