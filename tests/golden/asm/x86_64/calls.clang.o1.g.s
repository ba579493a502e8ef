	.text
	.file	"calls.c"
	.globl	set_handler                     # -- Begin function set_handler
	.p2align	4, 0x90
	.type	set_handler,@function
set_handler:                            # @set_handler
.Lfunc_begin0:
	.file	0 "." "calls.c" md5 0xeef309628e11f6b24a84cdf0d15fc574
	.cfi_startproc
# %bb.0:
	.loc	0 7 44 prologue_end             # calls.c:7:44
	movq	%rdi, handler(%rip)
	.loc	0 7 50 is_stmt 0                # calls.c:7:50
	retq
.Ltmp0:
.Lfunc_end0:
	.size	set_handler, .Lfunc_end0-set_handler
	.cfi_endproc
                                        # -- End function
	.globl	forward                         # -- Begin function forward
	.p2align	4, 0x90
	.type	forward,@function
forward:                                # @forward
.Lfunc_begin1:
	.cfi_startproc
# %bb.0:
	.loc	0 8 39 prologue_end is_stmt 1   # calls.c:8:39
	incl	%edi
.Ltmp1:
	.loc	0 8 29 is_stmt 0                # calls.c:8:29
	jmpq	*handler(%rip)                  # TAILCALL
.Ltmp2:
.Lfunc_end1:
	.size	forward, .Lfunc_end1-forward
	.cfi_endproc
                                        # -- End function
	.globl	count_down                      # -- Begin function count_down
	.p2align	4, 0x90
	.type	count_down,@function
count_down:                             # @count_down
.Lfunc_begin2:
	.loc	0 9 0 is_stmt 1                 # calls.c:9:0
	.cfi_startproc
# %bb.0:
	pushq	%rbp
	.cfi_def_cfa_offset 16
	pushq	%rbx
	.cfi_def_cfa_offset 24
	pushq	%rax
	.cfi_def_cfa_offset 32
	.cfi_offset %rbx, -24
	.cfi_offset %rbp, -16
	movl	%edi, %ebp
.Ltmp3:
	.loc	0 9 30 prologue_end             # calls.c:9:30
	incl	%fs:depth@TPOFF
	.loc	0 9 34 is_stmt 0                # calls.c:9:34
	leaq	.L.str(%rip), %rdi
	xorl	%ebx, %ebx
	movl	%ebp, %esi
	xorl	%eax, %eax
	callq	log_line@PLT
.Ltmp4:
	.loc	0 9 62                          # calls.c:9:62
	testl	%ebp, %ebp
	.loc	0 9 60                          # calls.c:9:60
	jle	.LBB2_2
# %bb.1:
	.loc	0 9 78                          # calls.c:9:78
	decl	%ebp
	.loc	0 9 68                          # calls.c:9:68
	movl	%ebp, %edi
	callq	*handler(%rip)
.Ltmp5:
	movl	%eax, %ebx
	.loc	0 9 85                          # calls.c:9:85
	movq	errors@GOTPCREL(%rip), %rax
	.loc	0 9 83                          # calls.c:9:83
	addl	(%rax), %ebx
.LBB2_2:
	.loc	0 9 53                          # calls.c:9:53
	movl	%ebx, %eax
	.loc	0 9 53 epilogue_begin           # calls.c:9:53
	addq	$8, %rsp
	.cfi_def_cfa_offset 24
	popq	%rbx
	.cfi_def_cfa_offset 16
	popq	%rbp
	.cfi_def_cfa_offset 8
	retq
.Ltmp6:
.Lfunc_end2:
	.size	count_down, .Lfunc_end2-count_down
	.cfi_endproc
                                        # -- End function
	.globl	third_error                     # -- Begin function third_error
	.p2align	4, 0x90
	.type	third_error,@function
third_error:                            # @third_error
.Lfunc_begin3:
	.cfi_startproc
# %bb.0:
	.loc	0 10 26 prologue_end is_stmt 1  # calls.c:10:26
	movq	errors@GOTPCREL(%rip), %rax
	addq	$8, %rax
	retq
.Ltmp7:
.Lfunc_end3:
	.size	third_error, .Lfunc_end3-third_error
	.cfi_endproc
                                        # -- End function
	.section	.rodata.cst8,"aM",@progbits,8
	.p2align	3, 0x0                          # -- Begin function total
.LCPI4_0:
	.quad	0x3fe0000000000000              # double 0.5
.LCPI4_1:
	.quad	0x54b249ad2594c37d              # double 1.0E+100
	.text
	.globl	total
	.p2align	4, 0x90
	.type	total,@function
total:                                  # @total
.Lfunc_begin4:
	.loc	0 11 0                          # calls.c:11:0
	.cfi_startproc
# %bb.0:
	movsd	.LCPI4_0(%rip), %xmm0           # xmm0 = [5.0E-1,0.0E+0]
.Ltmp8:
	.loc	0 11 59 prologue_end            # calls.c:11:59
	testq	%rdi, %rdi
	je	.LBB4_3
# %bb.1:
	.loc	0 0 59 is_stmt 0                # calls.c:0:59
	movsd	.LCPI4_1(%rip), %xmm1           # xmm1 = [1.0E+100,0.0E+0]
	.p2align	4, 0x90
.LBB4_2:                                # =>This Inner Loop Header: Depth=1
	movsd	16(%rdi), %xmm2                 # xmm2 = mem[0],zero
	.loc	0 11 95                         # calls.c:11:95
	mulsd	%xmm1, %xmm2
	addsd	%xmm2, %xmm0
	.loc	0 11 85                         # calls.c:11:85
	movq	(%rdi), %rdi
	.loc	0 11 59                         # calls.c:11:59
	testq	%rdi, %rdi
	jne	.LBB4_2
.LBB4_3:
	.loc	0 11 120                        # calls.c:11:120
	retq
.Ltmp9:
.Lfunc_end4:
	.size	total, .Lfunc_end4-total
	.cfi_endproc
                                        # -- End function
	.globl	sum                             # -- Begin function sum
	.p2align	4, 0x90
	.type	sum,@function
sum:                                    # @sum
.Lfunc_begin5:
	.loc	0 12 0 is_stmt 1                # calls.c:12:0
	.cfi_startproc
# %bb.0:
	subq	$88, %rsp
	.cfi_def_cfa_offset 96
	movq	%rsi, -88(%rsp)
	movq	%rdx, -80(%rsp)
	movq	%rcx, -72(%rsp)
	movq	%r8, -64(%rsp)
	movq	%r9, -56(%rsp)
	testb	%al, %al
	je	.LBB5_9
# %bb.8:
	movaps	%xmm0, -48(%rsp)
	movaps	%xmm1, -32(%rsp)
	movaps	%xmm2, -16(%rsp)
	movaps	%xmm3, (%rsp)
	movaps	%xmm4, 16(%rsp)
	movaps	%xmm5, 32(%rsp)
	movaps	%xmm6, 48(%rsp)
	movaps	%xmm7, 64(%rsp)
.LBB5_9:
	leaq	-96(%rsp), %rax
.Ltmp10:
	.loc	0 12 41 prologue_end            # calls.c:12:41
	movq	%rax, -112(%rsp)
	leaq	96(%rsp), %rax
	movq	%rax, -120(%rsp)
	movabsq	$206158430216, %rax             # imm = 0x3000000008
	movq	%rax, -128(%rsp)
	.loc	0 12 92 is_stmt 0               # calls.c:12:92
	testl	%edi, %edi
	.loc	0 12 77                         # calls.c:12:77
	jle	.LBB5_1
# %bb.2:
	.loc	0 0 77                          # calls.c:0:77
	movl	-128(%rsp), %ecx
	movq	-112(%rsp), %rdx
	movq	-120(%rsp), %rsi
	.loc	0 12 77                         # calls.c:12:77
	incl	%edi
	xorl	%eax, %eax
	jmp	.LBB5_3
	.p2align	4, 0x90
.LBB5_5:                                #   in Loop: Header=BB5_3 Depth=1
	.loc	0 12 104                        # calls.c:12:104
	leaq	8(%rsi), %r8
	movq	%r8, -120(%rsp)
.LBB5_6:                                #   in Loop: Header=BB5_3 Depth=1
	.loc	0 12 101                        # calls.c:12:101
	addl	(%rsi), %eax
	.loc	0 12 92                         # calls.c:12:92
	decl	%edi
	movq	%r8, %rsi
	cmpl	$1, %edi
	.loc	0 12 77                         # calls.c:12:77
	jle	.LBB5_7
.LBB5_3:                                # =>This Inner Loop Header: Depth=1
	.loc	0 12 104                        # calls.c:12:104
	cmpl	$40, %ecx
	ja	.LBB5_5
# %bb.4:                                #   in Loop: Header=BB5_3 Depth=1
	.loc	0 0 104                         # calls.c:0:104
	movq	%rsi, %r8
	.loc	0 12 104                        # calls.c:12:104
	movl	%ecx, %esi
	addq	%rdx, %rsi
	addl	$8, %ecx
	movl	%ecx, -128(%rsp)
	jmp	.LBB5_6
.LBB5_7:
	.loc	0 12 137 epilogue_begin         # calls.c:12:137
	addq	$88, %rsp
	.cfi_def_cfa_offset 8
	retq
.LBB5_1:
	.cfi_def_cfa_offset 96
	.loc	0 0 137                         # calls.c:0:137
	xorl	%eax, %eax
	.loc	0 12 137 epilogue_begin         # calls.c:12:137
	addq	$88, %rsp
	.cfi_def_cfa_offset 8
	retq
.Ltmp11:
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
	.long	0                               # 0x0
	.size	depth, 4

	.type	.L.str,@object                  # @.str
	.section	.rodata.str1.1,"aMS",@progbits,1
.L.str:
	.asciz	"%d"
	.size	.L.str, 3

	.section	.debug_abbrev,"",@progbits
	.byte	1                               # Abbreviation Code
	.byte	17                              # DW_TAG_compile_unit
	.byte	0                               # DW_CHILDREN_no
	.byte	37                              # DW_AT_producer
	.byte	37                              # DW_FORM_strx1
	.byte	19                              # DW_AT_language
	.byte	5                               # DW_FORM_data2
	.byte	3                               # DW_AT_name
	.byte	37                              # DW_FORM_strx1
	.byte	114                             # DW_AT_str_offsets_base
	.byte	23                              # DW_FORM_sec_offset
	.byte	16                              # DW_AT_stmt_list
	.byte	23                              # DW_FORM_sec_offset
	.byte	27                              # DW_AT_comp_dir
	.byte	37                              # DW_FORM_strx1
	.byte	17                              # DW_AT_low_pc
	.byte	27                              # DW_FORM_addrx
	.byte	18                              # DW_AT_high_pc
	.byte	6                               # DW_FORM_data4
	.byte	115                             # DW_AT_addr_base
	.byte	23                              # DW_FORM_sec_offset
	.byte	0                               # EOM(1)
	.byte	0                               # EOM(2)
	.byte	0                               # EOM(3)
	.section	.debug_info,"",@progbits
.Lcu_begin0:
	.long	.Ldebug_info_end0-.Ldebug_info_start0 # Length of Unit
.Ldebug_info_start0:
	.short	5                               # DWARF version number
	.byte	1                               # DWARF Unit Type
	.byte	8                               # Address Size (in bytes)
	.long	.debug_abbrev                   # Offset Into Abbrev. Section
	.byte	1                               # Abbrev [1] 0xc:0x17 DW_TAG_compile_unit
	.byte	0                               # DW_AT_producer
	.short	29                              # DW_AT_language
	.byte	1                               # DW_AT_name
	.long	.Lstr_offsets_base0             # DW_AT_str_offsets_base
	.long	.Lline_table_start0             # DW_AT_stmt_list
	.byte	2                               # DW_AT_comp_dir
	.byte	0                               # DW_AT_low_pc
	.long	.Lfunc_end5-.Lfunc_begin0       # DW_AT_high_pc
	.long	.Laddr_table_base0              # DW_AT_addr_base
.Ldebug_info_end0:
	.section	.debug_str_offsets,"",@progbits
	.long	16                              # Length of String Offsets Set
	.short	5
	.short	0
.Lstr_offsets_base0:
	.section	.debug_str,"MS",@progbits,1
.Linfo_string0:
	.asciz	"Debian clang version 19.1.7 (3~deb12u1)" # string offset=0
.Linfo_string1:
	.asciz	"calls.c"                       # string offset=40
.Linfo_string2:
	.asciz	"."                             # string offset=48
	.section	.debug_str_offsets,"",@progbits
	.long	.Linfo_string0
	.long	.Linfo_string1
	.long	.Linfo_string2
	.section	.debug_addr,"",@progbits
	.long	.Ldebug_addr_end0-.Ldebug_addr_start0 # Length of contribution
.Ldebug_addr_start0:
	.short	5                               # DWARF version number
	.byte	8                               # Address size
	.byte	0                               # Segment selector size
.Laddr_table_base0:
	.quad	.Lfunc_begin0
.Ldebug_addr_end0:
	.ident	"Debian clang version 19.1.7 (3~deb12u1)"
	.section	".note.GNU-stack","",@progbits
	.addrsig
	.addrsig_sym errors
	.section	.debug_line,"",@progbits
.Lline_table_start0:
