package memory

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// seals are what makes a template's memory immutable: for every process, whatever its uid.
const seals = unix.F_SEAL_WRITE | unix.F_SEAL_GROW | unix.F_SEAL_SHRINK | unix.F_SEAL_SEAL

// maxBytes bounds the memory of one VM: 1 TiB.
const maxBytes = 1 << 40

// NewTemplate makes an unsealed memfd of bytes (a multiple of PageSize) for a VM that is being
// booted. The name shows in /proc/PID/maps.
//
// Its mode lets any uid open it through /proc/self/fd: QEMU 7.2 opens its memory file for
// writing under its own uid even to map it private. The seals, not the mode, protect it; other
// processes reach it only through /proc/PID/fd of a process that they may trace.
func NewTemplate(name string, bytes int64) (*os.File, error) {
	if err := checkSize(bytes); err != nil {
		return nil, fault.Wrap(err, "create template memory", name)
	}
	fd, err := memfdCreate(name)
	if err != nil {
		return nil, fault.Wrap(fmt.Errorf("memfd_create: %w", err), "create template memory", name)
	}
	f := os.NewFile(uintptr(fd), "memfd:"+name)
	if err := f.Truncate(bytes); err != nil {
		return nil, errors.Join(fault.Wrap(err, "size template memory", name), f.Close())
	}
	return f, nil
}

// memfdCreate asks for a memfd that can never be executed; kernels before 6.3 do not know that.
func memfdCreate(name string) (int, error) {
	const flags = unix.MFD_ALLOW_SEALING | unix.MFD_CLOEXEC
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		return unix.MemfdCreate(name, flags)
	}
	return fd, err
}

func checkSize(bytes int64) error {
	if bytes <= 0 || bytes%PageSize != 0 || bytes > maxBytes {
		return fault.New(fault.Invalid, "", "", fmt.Sprintf("%d bytes is not a size of memory (a multiple of %d up to %d)", bytes, PageSize, int64(maxBytes)))
	}
	return nil
}

// Seal makes f immutable for ever. It needs the VM that wrote f to be dead: with a writable
// shared mapping left anywhere it fails with fault.FailedPrecondition. Idempotent.
func Seal(f *os.File) error {
	if CheckSealed(f) == nil {
		return nil
	}
	_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
	if errors.Is(err, unix.EBUSY) {
		return fault.New(fault.FailedPrecondition, "seal", f.Name(), "a process still maps it writable").
			WithHint("end the VM that boots from it first")
	}
	return fault.Wrap(err, "seal", f.Name())
}

// CheckSealed says whether f is immutable: an error names the reason if not.
func CheckSealed(f *os.File) error {
	got, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return fault.New(fault.FailedPrecondition, "check seals of", f.Name(), "it is not a memfd: "+err.Error())
	}
	if got&seals != seals {
		return fault.New(fault.FailedPrecondition, "check seals of", f.Name(), fmt.Sprintf("it can still be changed (seals %#x)", got))
	}
	return nil
}

// resident is the RAM (or swap) that a memfd's pages take, in bytes.
func resident(f *os.File) int64 {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0
	}
	return st.Blocks * 512
}
