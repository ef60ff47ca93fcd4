package sample

import (
	"encoding/binary"
	"os"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Of linux/kvm.h.
const (
	createVM, vcpuMapSize, createVCPU, runVCPU = 0xae01, 0xae04, 0xae41, 0xae80
	setMemory, setRegs, getSregs, setSregs     = 0x4020ae46, 0x4090ae82, 0x8138ae83, 0x4138ae84
	exitHlt                                    = 5
	sregsBytes, regsBytes                      = 312, 144
	regsRIP, regsFlags                         = 128, 136
	runExitReason                              = 8
)

// runNested runs one instruction, hlt, on a virtual CPU and gives KVM's reason for the exit:
// ioctls alone may lie.
func runNested(t *testing.T) uint32 {
	t.Helper()
	kvm, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(kvm)
	machine := call(t, kvm, createVM, nil)
	defer unix.Close(machine)
	memory, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Munmap(memory)) }()
	memory[0] = 0xf4
	var region [4]uint64 // slot and flags, guest address, size, our address
	region[2], region[3] = uint64(len(memory)), uint64(uintptr(unsafe.Pointer(&memory[0])))
	call(t, machine, setMemory, unsafe.Pointer(&region))
	cpu := call(t, machine, createVCPU, nil)
	defer unix.Close(cpu)
	var sregs [sregsBytes]byte
	call(t, cpu, getSregs, unsafe.Pointer(&sregs))
	clear(sregs[:8])    // cs.base
	clear(sregs[12:14]) // cs.selector
	call(t, cpu, setSregs, unsafe.Pointer(&sregs))
	var regs [regsBytes]byte
	binary.LittleEndian.PutUint64(regs[regsFlags:], 2)
	call(t, cpu, setRegs, unsafe.Pointer(&regs))
	state, err := unix.Mmap(cpu, 0, call(t, kvm, vcpuMapSize, nil), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.Munmap(state)) }()
	call(t, cpu, runVCPU, nil)
	return binary.LittleEndian.Uint32(state[runExitReason:])
}

func call(t *testing.T, fd int, request uintptr, arg unsafe.Pointer) int {
	t.Helper()
	for {
		got, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
		if errno == unix.EINTR {
			continue
		}
		require.Zero(t, errno, "ioctl %#x: %v", request, errno)
		return int(got)
	}
}
