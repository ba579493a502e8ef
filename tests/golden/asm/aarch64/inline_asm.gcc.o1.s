	.arch armv8-a
	.file	"inline_asm_arm.c"
	.text
	.align	2
	.global	spin
	.type	spin, %function
spin:
.LFB0:
	.cfi_startproc
#APP
// 4 "inline_asm_arm.c" 1
	1: ldxr w2, [x0] // take
	add w2, w2, w1 ; stxr w3, w2, [x0]
	cbnz w3, 1b
// 0 "" 2
#NO_APP
	mov	w0, w2
#APP
// 5 "inline_asm_arm.c" 1
	1: subs w0, w0, #0x10
	b.ne 1b
// 0 "" 2
#NO_APP
	ret
	.cfi_endproc
.LFE0:
	.size	spin, .-spin
	.ident	"GCC: (Debian 12.2.0-14) 12.2.0"
	.section	.note.GNU-stack,"",@progbits
