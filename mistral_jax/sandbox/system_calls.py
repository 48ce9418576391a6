"""The second wall of the sandbox: a seccomp filter that refuses what no checked program needs.

Refused are looking into other processes, new namespaces and mounts, memory that no limit counts
(System V, memfd), key rings, and the parts of the kernel with a history of holes (bpf, io_uring,
userfaultfd, perf). The refused calls return EPERM, as for any unprivileged program. Numbers:
the kernel's arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h; the
filter's form: linux/seccomp.h and linux/filter.h.
"""

import errno
import platform
import struct

# System call -> its number on x86_64 and on aarch64 (None: it is not there).
REFUSED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "pidfd_getfd": (438, 438),
    "kcmp": (312, 272),
    "shmget": (29, 194),
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semget": (64, 190),
    "semop": (65, 193),
    "semctl": (66, 191),
    "msgget": (68, 186),
    "msgsnd": (69, 189),
    "mq_open": (240, 180),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "syslog": (103, 116),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "personality": (135, 92),
    "vhangup": (153, 58),
    "fanotify_init": (300, 262),
    "iopl": (172, None),
    "ioperm": (173, None),
}
CLONE3 = 435  # both; its flags are behind a pointer, so that libc must be sent back to clone
X32_BIT = 0x40000000  # the other numbering of the same calls on x86_64
# Machine -> AUDIT_ARCH_* (linux/audit.h) and the column of REFUSED.
MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

LOAD, JUMP_EQUAL, JUMP_NOT_BELOW, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER_AT, ARCHITECTURE_AT = 0, 4  # in struct seccomp_data
ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000


def build_filter(machine: str = "") -> bytes:
    """Return the filter as `bwrap --seccomp` reads it.

    Raises:
        ValueError: the machine's system calls are not known here.
    """
    machine = machine or platform.machine()
    if machine not in MACHINES:
        known = ", ".join(MACHINES)
        raise ValueError(f"the sandbox knows the system calls of {known}, not of {machine}")
    architecture, column = MACHINES[machine]
    refused = sorted(row[column] for row in REFUSED.values() if row[column] is not None)
    program = [
        (LOAD, 0, 0, ARCHITECTURE_AT),
        (JUMP_EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NUMBER_AT),
        (JUMP_NOT_BELOW, 0, 1, X32_BIT),
        (RETURN, 0, 0, REFUSE | errno.EPERM),
        (JUMP_EQUAL, 0, 1, CLONE3),
        (RETURN, 0, 0, REFUSE | errno.ENOSYS),
    ]
    for number in refused:
        program += [(JUMP_EQUAL, 0, 1, number), (RETURN, 0, 0, REFUSE | errno.EPERM)]
    program.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in program)
