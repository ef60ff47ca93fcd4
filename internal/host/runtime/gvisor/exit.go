package gvisor

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/vmm/process"
)

// ending is what is known of how a sandbox ended.
type ending struct {
	status process.Status
	// oom counts what was killed for memory, panicked is the sentry's panic, said the console's
	// end.
	oom      int64
	panicked string
	said     []byte
}

// reason for people. The sentry ends with the status of the guest agent, the first process in it.
func (e ending) reason() string {
	s := e.status
	killed := s.Known && (s.Signal == unix.SIGKILL || s.Code == 128+int(unix.SIGKILL))
	switch {
	case e.panicked != "":
		return "the sentry panicked: " + e.panicked
	case e.oom > 0 && (killed || !s.Known):
		return "out of memory"
	case !s.Known:
		return "ended, exit status unknown"
	case s.Signal != 0:
		return fmt.Sprintf("killed by signal %d", int(s.Signal))
	case s.Code > 128 && s.Code < 128+65:
		return e.withConsole(fmt.Sprintf("the guest agent was killed by signal %d", s.Code-128))
	default:
		return e.withConsole(fmt.Sprintf("the guest agent ended with exit status %d", s.Code))
	}
}

// withConsole adds the last line of the console.
func (e ending) withConsole(text string) string {
	said := bytes.TrimSpace(e.said)
	if i := bytes.LastIndexByte(said, '\n'); i >= 0 {
		said = said[i+1:]
	}
	if len(said) == 0 {
		return text
	}
	const most = 200
	line := printable(string(said))
	return text + ": " + line[:min(len(line), most)]
}

// firstLine of a file that says something, for people.
func firstLine(path string) string {
	raw, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(printable(line)); line != "" {
			return strings.TrimPrefix(line, "panic: ")
		}
	}
	return ""
}

// watch waits for the sentry's end and says why it ended.
func (in *instance) watch() {
	select {
	case <-in.detached:
		return
	case <-in.proc.Done():
	}
	status := in.proc.Status()
	if !status.Known {
		status = zombieStatus(in.rec, status)
	}
	in.drain()
	in.exit = in.describe(status)
	close(in.exited)
}

// zombieStatus reads how a process ended that its parent, init, has not reaped yet.
func zombieStatus(rec instanceRecord, s process.Status) process.Status {
	fields, err := statFields(rec.PID)
	if err != nil || fields[startTimeField] != strconv.FormatUint(rec.StartTime, 10) {
		return s
	}
	code, err := strconv.ParseUint(fields[exitCodeField], 10, 32)
	if fields[stateField] != "Z" || err != nil {
		return s
	}
	w := unix.WaitStatus(code)
	s.Known = true
	if w.Signaled() {
		s.Code, s.Signal = -1, w.Signal()
	} else {
		s.Code, s.Signal = w.ExitStatus(), 0
	}
	return s
}

// Fields of /proc/PID/stat, counted from the state, which follows the command's last bracket.
const (
	stateField     = 0
	startTimeField = 22 - 3
	exitCodeField  = 52 - 3
)

func statFields(pid int) ([]string, error) {
	raw, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return nil, err
	}
	fields := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	if len(fields) <= exitCodeField {
		return nil, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return fields, nil
}

func startTime(pid int) (uint64, error) {
	fields, err := statFields(pid)
	if err != nil {
		return 0, err
	}
	return strconv.ParseUint(fields[startTimeField], 10, 64)
}
