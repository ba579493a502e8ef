	.attribute	4, 16
	.attribute	5, "rv64i2p1_m2p0_a2p1_f2p2_d2p2_c2p0_zicsr2p0_zmmul1p0_zaamo1p0_zalrsc1p0_zca1p0_zcd1p0"
	.file	"calls.c"
	.text
	.globl	set_handler                     # -- Begin function set_handler
	.p2align	1
	.type	set_handler,@function
set_handler:                            # @set_handler
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
.Lpcrel_hi0:
	auipc	a1, %pcrel_hi(handler)
	sd	a0, %pcrel_lo(.Lpcrel_hi0)(a1)
	.cfi_def_cfa sp, 16
	ld	ra, 8(sp)                       # 8-byte Folded Reload
	ld	s0, 0(sp)                       # 8-byte Folded Reload
	.cfi_restore ra
	.cfi_restore s0
	addi	sp, sp, 16
	.cfi_def_cfa_offset 0
	ret
.Lfunc_end0:
	.size	set_handler, .Lfunc_end0-set_handler
	.cfi_endproc
                                        # -- End function
	.globl	forward                         # -- Begin function forward
	.p2align	1
	.type	forward,@function
forward:                                # @forward
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
.Lpcrel_hi1:
	auipc	a1, %pcrel_hi(handler)
	ld	a5, %pcrel_lo(.Lpcrel_hi1)(a1)
	addiw	a0, a0, 1
	.cfi_def_cfa sp, 16
	ld	ra, 8(sp)                       # 8-byte Folded Reload
	ld	s0, 0(sp)                       # 8-byte Folded Reload
	.cfi_restore ra
	.cfi_restore s0
	addi	sp, sp, 16
	.cfi_def_cfa_offset 0
	jr	a5
.Lfunc_end1:
	.size	forward, .Lfunc_end1-forward
	.cfi_endproc
                                        # -- End function
	.globl	count_down                      # -- Begin function count_down
	.p2align	1
	.type	count_down,@function
count_down:                             # @count_down
	.cfi_startproc
# %bb.0:
	addi	sp, sp, -32
	.cfi_def_cfa_offset 32
	sd	ra, 24(sp)                      # 8-byte Folded Spill
	sd	s0, 16(sp)                      # 8-byte Folded Spill
	sd	s1, 8(sp)                       # 8-byte Folded Spill
	.cfi_offset ra, -8
	.cfi_offset s0, -16
	.cfi_offset s1, -24
	addi	s0, sp, 32
	.cfi_def_cfa s0, 0
	mv	s1, a0
.Lpcrel_hi2:
	auipc	a0, %tls_gd_pcrel_hi(depth)
	addi	a0, a0, %pcrel_lo(.Lpcrel_hi2)
	call	__tls_get_addr
	lw	a1, 0(a0)
	addi	a1, a1, 1
	sw	a1, 0(a0)
.Lpcrel_hi3:
	auipc	a0, %pcrel_hi(.L.str)
	addi	a0, a0, %pcrel_lo(.Lpcrel_hi3)
	mv	a1, s1
	call	log_line
	blez	s1, .LBB2_2
# %bb.1:
.Lpcrel_hi4:
	auipc	a0, %pcrel_hi(handler)
	ld	a1, %pcrel_lo(.Lpcrel_hi4)(a0)
	addiw	a0, s1, -1
	jalr	a1
.Lpcrel_hi5:
	auipc	a1, %got_pcrel_hi(errors)
	ld	a1, %pcrel_lo(.Lpcrel_hi5)(a1)
	lw	a1, 0(a1)
	addw	a0, a0, a1
	j	.LBB2_3
.LBB2_2:
	li	a0, 0
.LBB2_3:
	.cfi_def_cfa sp, 32
	ld	ra, 24(sp)                      # 8-byte Folded Reload
	ld	s0, 16(sp)                      # 8-byte Folded Reload
	ld	s1, 8(sp)                       # 8-byte Folded Reload
	.cfi_restore ra
	.cfi_restore s0
	.cfi_restore s1
	addi	sp, sp, 32
	.cfi_def_cfa_offset 0
	ret
.Lfunc_end2:
	.size	count_down, .Lfunc_end2-count_down
	.cfi_endproc
                                        # -- End function
	.globl	third_error                     # -- Begin function third_error
	.p2align	1
	.type	third_error,@function
third_error:                            # @third_error
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
.Lpcrel_hi6:
	auipc	a0, %got_pcrel_hi(errors)
	ld	a0, %pcrel_lo(.Lpcrel_hi6)(a0)
	addi	a0, a0, 8
	.cfi_def_cfa sp, 16
	ld	ra, 8(sp)                       # 8-byte Folded Reload
	ld	s0, 0(sp)                       # 8-byte Folded Reload
	.cfi_restore ra
	.cfi_restore s0
	addi	sp, sp, 16
	.cfi_def_cfa_offset 0
	ret
.Lfunc_end3:
	.size	third_error, .Lfunc_end3-third_error
	.cfi_endproc
                                        # -- End function
	.section	.rodata.cst8,"aM",@progbits,8
	.p2align	3, 0x0                          # -- Begin function total
.LCPI4_0:
	.quad	0x54b249ad2594c37d              # double 1.0E+100
	.text
	.globl	total
	.p2align	1
	.type	total,@function
total:                                  # @total
	.cfi_startproc
# %bb.0:
	li	a1, 511
	slli	a1, a1, 53
	beqz	a0, .LBB4_4
# %bb.1:
	addi	sp, sp, -16
	.cfi_def_cfa_offset 16
	sd	ra, 8(sp)                       # 8-byte Folded Spill
	sd	s0, 0(sp)                       # 8-byte Folded Spill
	.cfi_offset ra, -8
	.cfi_offset s0, -16
	addi	s0, sp, 16
	.cfi_def_cfa s0, 0
.Lpcrel_hi7:
	auipc	a2, %pcrel_hi(.LCPI4_0)
	fld	fa5, %pcrel_lo(.Lpcrel_hi7)(a2)
	fmv.d.x	fa0, a1
.LBB4_2:                                # =>This Inner Loop Header: Depth=1
	fld	fa4, 16(a0)
	ld	a0, 0(a0)
	fmadd.d	fa0, fa4, fa5, fa0
	bnez	a0, .LBB4_2
# %bb.3:
	.cfi_def_cfa sp, 16
	ld	ra, 8(sp)                       # 8-byte Folded Reload
	ld	s0, 0(sp)                       # 8-byte Folded Reload
	.cfi_restore ra
	.cfi_restore s0
	addi	sp, sp, 16
	.cfi_def_cfa_offset 0
	ret
.LBB4_4:
	fmv.d.x	fa0, a1
	ret
.Lfunc_end4:
	.size	total, .Lfunc_end4-total
	.cfi_endproc
                                        # -- End function
	.globl	sum                             # -- Begin function sum
	.p2align	1
	.type	sum,@function
sum:                                    # @sum
	.cfi_startproc
# %bb.0:
	addi	sp, sp, -96
	.cfi_def_cfa_offset 96
	sd	ra, 24(sp)                      # 8-byte Folded Spill
	sd	s0, 16(sp)                      # 8-byte Folded Spill
	.cfi_offset ra, -72
	.cfi_offset s0, -80
	addi	s0, sp, 32
	.cfi_def_cfa s0, 64
	mv	t0, a0
	sd	a5, 40(s0)
	sd	a6, 48(s0)
	sd	a7, 56(s0)
	sd	a1, 8(s0)
	sd	a2, 16(s0)
	sd	a3, 24(s0)
	sd	a4, 32(s0)
	addi	a0, s0, 8
	sd	a0, -24(s0)
	li	a0, 0
	blez	t0, .LBB5_3
# %bb.1:
	ld	a1, -24(s0)
	addi	t0, t0, -1
	slli	t0, t0, 32
	srli	a2, t0, 29
	add	a2, a2, a1
	addi	a1, a1, 8
	addi	a2, a2, 16
.LBB5_2:                                # =>This Inner Loop Header: Depth=1
	sd	a1, -24(s0)
	lw	a3, -8(a1)
	addi	a1, a1, 8
	addw	a0, a0, a3
	bne	a1, a2, .LBB5_2
.LBB5_3:
	.cfi_def_cfa sp, 96
	ld	ra, 24(sp)                      # 8-byte Folded Reload
	ld	s0, 16(sp)                      # 8-byte Folded Reload
	.cfi_restore ra
	.cfi_restore s0
	addi	sp, sp, 96
	.cfi_def_cfa_offset 0
	ret
.Lfunc_end5:
	.size	sum, .Lfunc_end5-sum
	.cfi_endproc
                                        # -- End function
	.type	handler,@object                 # @handler
	.local	handler
	.comm	handler,8,8
	.type	depth,@object                   # @depth
	.section	.tbss,"awT",@nobits
	.globl	depth
	.p2align	2, 0x0
depth:
	.word	0                               # 0x0
	.size	depth, 4

	.type	.L.str,@object                  # @.str
	.section	.rodata.str1.1,"aMS",@progbits,1
.L.str:
	.asciz	"%d"
	.size	.L.str, 3

	.ident	"clang version 22.1.8"
	.section	".note.GNU-stack","",@progbits
	.addrsig
	.addrsig_sym errors
