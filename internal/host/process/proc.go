package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
)

// stat is what is read of /proc/PID/stat.
type stat struct {
	state     string
	startTime uint64
	exitCode  uint64 // of a zombie
}

// Fields of /proc/PID/stat, counted from the state, the first behind the command.
const (
	stateField     = 0
	startTimeField = 22 - 3
	exitCodeField  = 52 - 3
)

// readStat reads /proc/PID/stat. The command in it may hold spaces and brackets, so fields
// are counted from the last bracket.
func readStat(pid int) (stat, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) <= exitCodeField {
		return stat{}, fmt.Errorf("/proc/%d/stat: %d fields", pid, len(fields))
	}
	start, err := strconv.ParseUint(fields[startTimeField], 10, 64)
	exit, exitErr := strconv.ParseUint(fields[exitCodeField], 10, 32)
	if err := errors.Join(err, exitErr); err != nil {
		return stat{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
	}
	return stat{state: fields[stateField], startTime: start, exitCode: exit}, nil
}

// Stopped says why a process that has not ended does not run: "" when it does, or is gone. A
// tracer that looks at a process for a moment is seen too.
func (p *Process) Stopped() string {
	st, err := readStat(p.PID)
	if err != nil || st.startTime != p.StartTime || p.ended() {
		return "" // the pid is another's, or nobody's
	}
	switch st.state {
	case "T":
		return "its process was stopped by a signal"
	case "t":
		return "its process is held by a debugger"
	default:
		return ""
	}
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
