package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

// Mapping implements vmm.VM.
func (vm *VM) Mapping() (vmm.Mapping, error) {
	m, _, err := vm.mapping()
	return m, err
}

// mapping finds the RAM among the process's mappings by the memfd's inode. The kernel may have
// split it; then its parts are contiguous in address and offset.
func (vm *VM) mapping() (_ vmm.Mapping, shared bool, _ error) {
	areas, err := vm.areas()
	if err != nil {
		return vmm.Mapping{}, false, vm.wrap(err, "find memory of")
	}
	m := vmm.Mapping{PID: vm.handle.PID}
	for _, a := range areas {
		if m.Bytes == 0 {
			m.Addr = a.start
		}
		if a.offset != m.Bytes || a.start != m.Addr+uint64(m.Bytes) {
			return vmm.Mapping{}, false, vm.wrap(errors.New("its mapping has holes"), "find memory of")
		}
		m.Bytes += int64(a.end - a.start)
		shared = a.shared
	}
	if m.Bytes != int64(vm.handle.MemoryMB)<<20 {
		return vmm.Mapping{}, false, vm.wrap(fmt.Errorf("%d bytes are mapped", m.Bytes), "find memory of")
	}
	return m, shared, nil
}

// area is one line of /proc/PID/maps that maps the VM's memfd.
type area struct {
	start, end uint64
	offset     int64
	shared     bool
}

func (vm *VM) areas() ([]area, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", vm.handle.PID))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	dev := fmt.Sprintf("%02x:%02x", unix.Major(vm.handle.MemoryDev), unix.Minor(vm.handle.MemoryDev))
	ino := strconv.FormatUint(vm.handle.MemoryIno, 10)
	var out []area
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// 7f0000000000-7f0020000000 rw-p 00000000 00:01 1234   /memfd:ram (deleted)
		field := strings.Fields(lines.Text())
		if len(field) < 5 || field[3] != dev || field[4] != ino {
			continue
		}
		a := area{shared: strings.HasSuffix(field[1], "s")}
		if _, err := fmt.Sscanf(field[0]+" "+field[2], "%x-%x %x", &a.start, &a.end, &a.offset); err != nil {
			return nil, fmt.Errorf("parse maps: %w", err)
		}
		out = append(out, a)
	}
	return out, lines.Err()
}

// MemoryFile implements vmm.VM. The descriptor is QEMU's, which is not trusted: it must be the
// memfd of the handle and, unless QEMU was meant to write it, still sealed.
func (vm *VM) MemoryFile() (*os.File, error) {
	if err := vm.usable("take memory of"); err != nil {
		return nil, err
	}
	_, shared, err := vm.mapping()
	if err != nil {
		return nil, err
	}
	f, err := vm.proc.TakeFD(vm.handle.MemoryFD)
	if err != nil {
		return nil, vm.wrap(err, "take memory of")
	}
	if err := vm.checkMemory(f, shared); err != nil {
		return nil, errors.Join(vm.wrap(err, "take memory of"), f.Close())
	}
	return f, nil
}

func (vm *VM) checkMemory(f *os.File, shared bool) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	if st.Dev != vm.handle.MemoryDev || st.Ino != vm.handle.MemoryIno {
		return fault.New(fault.Internal, "check", "memfd", "it is another file than the handle's")
	}
	seals, err := sealsOf(f)
	if err != nil {
		return err
	}
	if !shared && seals&sealed != sealed {
		return fault.New(fault.Internal, "check", "memfd", "it is not sealed")
	}
	return nil
}

// Dirty implements vmm.VM: QEMU's memory is read from the process.
func (vm *VM) Dirty(context.Context) (*os.File, error) {
	return nil, vm.wrap(fault.New(fault.FailedPrecondition, "", "", "its memory is a memfd of the caller's"), "read what was written by")
}
