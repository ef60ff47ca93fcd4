package firecracker

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm"
)

// Mapping implements vmm.VM: the largest piece, which is all of a VM's memory up to 3 GiB.
func (vm *VM) Mapping() (vmm.Mapping, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", vm.handle.PID))
	if err != nil {
		return vmm.Mapping{}, vm.wrap(err, "find memory of")
	}
	defer f.Close()
	m := vmm.Mapping{PID: vm.handle.PID}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		// 7f0000000000-7f0020000000 rw-p 00000000 fe:00 1234   /memory
		field := strings.Fields(lines.Text())
		if len(field) < 2 || !strings.HasPrefix(field[1], "rw") {
			continue
		}
		var from, to uint64
		if _, err := fmt.Sscanf(field[0], "%x-%x", &from, &to); err != nil {
			return vmm.Mapping{}, vm.wrap(err, "find memory of")
		}
		if n := int64(to - from); n > m.Bytes {
			m.Addr, m.Bytes = from, n
		}
	}
	if err := lines.Err(); err != nil {
		return vmm.Mapping{}, vm.wrap(err, "find memory of")
	}
	if m.Bytes == 0 {
		return vmm.Mapping{}, vm.wrap(errors.New("nothing is mapped"), "find memory of")
	}
	m.Bytes = min(m.Bytes, int64(vm.handle.MemoryMB)<<20) // the kernel joins neighbours
	return m, nil
}

// MemoryFile implements vmm.VM: there is none.
func (vm *VM) MemoryFile() (*os.File, error) {
	return nil, vm.wrap(fault.New(fault.FailedPrecondition, "", "", "firecracker makes its memory itself"), "take memory of")
}
