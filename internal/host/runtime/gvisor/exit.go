package gvisor

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/host/process"
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
	line := clipped(printable(string(said)))
	return text + ": " + line[:min(len(line), most)]
}

// firstLine of a file that says something, for people. The sentry holds the file open, so one that
// was broken out of may have made it of any size.
func firstLine(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const most = 64 << 10
	raw, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(clipped(printable(line))); line != "" {
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
	in.drain()
	in.exit = in.describe(in.proc.Status())
	close(in.exited)
}
