package process

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
)

type stat struct{ startTime uint64 }

// readStat reads /proc/PID/stat. The command in it may hold spaces and brackets, so fields
// are counted from the last bracket.
func readStat(pid int) (stat, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	const startTimeField = 22 - 3 // field 3, the state, comes first here
	if len(fields) <= startTimeField {
		return stat{}, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	start, err := strconv.ParseUint(fields[startTimeField], 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return stat{startTime: start}, nil
}

// UID is the user that the process runs under now.
func (p *Process) UID() (int, error) {
	info, err := os.Stat(fmt.Sprintf("/proc/%d", p.PID))
	if err != nil {
		return 0, fault.Wrap(err, "read owner of", fmt.Sprintf("process %d", p.PID))
	}
	return int(info.Sys().(*syscall.Stat_t).Uid), nil
}

// BootID of the running kernel.
var BootID = sync.OnceValue(func() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
})
