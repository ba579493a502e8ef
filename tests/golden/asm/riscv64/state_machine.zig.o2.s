	.attribute	4, 16
	.attribute	5, "rv64i2p1_m2p0_a2p1_f2p2_d2p2_c2p0_zicsr2p0_zmmul1p0_zaamo1p0_zalrsc1p0_zca1p0_zcd1p0"
	.file	"state_machine.c"
	.text
	.globl	state_machine                   # -- Begin function state_machine
	.p2align	1
	.type	state_machine,@function
state_machine:                          # @state_machine
	.cfi_startproc
# %bb.0:
	addi	sp, sp, -16
	.cfi_def_cfa_offset 16
	sd	ra, 8(sp)                       # 8-byte Folded Spill
	sd	s0, 0(sp)                       # 8-byte Folded Spill
	.cfi_offset ra, -8
	.cfi_offset s0, -16
	addi	s0, sp, 16
	.cfi_def_cfa s0, 0
	.cfi_remember_state
	li	a2, 6
	bltu	a2, a0, .LBB0_6
# %bb.1:
	slli	a0, a0, 2
.Lpcrel_hi0:
	auipc	a2, %pcrel_hi(.LJTI0_0)
	addi	a2, a2, %pcrel_lo(.Lpcrel_hi0)
	add	a0, a0, a2
	lw	a0, 0(a0)
	add	a0, a0, a2
	jr	a0
.LBB0_2:
.Lpcrel_hi1:
	auipc	a1, %pcrel_hi(.L.str)
	addi	a1, a1, %pcrel_lo(.Lpcrel_hi1)
	li	a0, 1
	.cfi_def_cfa sp, 16
	j	.LBB0_9
.LBB0_3:
	.cfi_restore_state
	.cfi_remember_state
.Lpcrel_hi4:
	auipc	a0, %pcrel_hi(visits)
	li	a1, 5
	sw	a1, %pcrel_lo(.Lpcrel_hi4)(a0)
	li	a0, 9
	j	.LBB0_11
.LBB0_4:
.Lpcrel_hi3:
	auipc	a0, %pcrel_hi(visits)
	lw	a0, %pcrel_lo(.Lpcrel_hi3)(a0)
	j	.LBB0_11
.LBB0_5:
	slliw	a0, a1, 3
	j	.LBB0_11
.LBB0_6:
	lui	a0, 1048448
	j	.LBB0_11
.LBB0_7:
.Lpcrel_hi2:
	auipc	a0, %pcrel_hi(visits)
	lw	a2, %pcrel_lo(.Lpcrel_hi2)(a0)
	add	a1, a1, a2
	sw	a1, %pcrel_lo(.Lpcrel_hi2)(a0)
	li	a0, 22
	j	.LBB0_11
.LBB0_8:
.Lpcrel_hi5:
	auipc	a2, %pcrel_hi(.L.str.1)
	addi	a2, a2, %pcrel_lo(.Lpcrel_hi5)
	mv	a0, a1
	mv	a1, a2
	.cfi_def_cfa sp, 16
.LBB0_9:
	ld	ra, 8(sp)                       # 8-byte Folded Reload
	ld	s0, 0(sp)                       # 8-byte Folded Reload
	.cfi_restore ra
	.cfi_restore s0
	addi	sp, sp, 16
	.cfi_def_cfa_offset 0
	tail	report
.LBB0_10:
	.cfi_restore_state
	lui	a0, 18
	addi	a0, a0, 837
	mulw	a0, a1, a0
.LBB0_11:
	.cfi_def_cfa sp, 16
	ld	ra, 8(sp)                       # 8-byte Folded Reload
	ld	s0, 0(sp)                       # 8-byte Folded Reload
	.cfi_restore ra
	.cfi_restore s0
	addi	sp, sp, 16
	.cfi_def_cfa_offset 0
	ret
.Lfunc_end0:
	.size	state_machine, .Lfunc_end0-state_machine
	.cfi_endproc
	.section	.rodata,"a",@progbits
	.p2align	2, 0x0
.LJTI0_0:
	.word	.LBB0_2-.LJTI0_0
	.word	.LBB0_7-.LJTI0_0
	.word	.LBB0_4-.LJTI0_0
	.word	.LBB0_5-.LJTI0_0
	.word	.LBB0_3-.LJTI0_0
	.word	.LBB0_8-.LJTI0_0
	.word	.LBB0_10-.LJTI0_0
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

	.ident	"clang version 22.1.8"
	.section	".note.GNU-stack","",@progbits
	.addrsig
