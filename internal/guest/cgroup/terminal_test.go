package cgroup

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/guest/guesttest"
)

// terminal is an interactive shell with job control.
type terminal struct {
	*world
	master *os.File
	seen   chan string
	said   string
}

func (w *world) terminal() *terminal {
	w.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	require.NoError(w, err)
	require.NoError(w, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	require.NoError(w, err)
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(int(number)), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(w, err)
	t := &terminal{world: w, master: os.NewFile(uintptr(fd), "terminal"), seen: make(chan string, 1000)}
	cmd := exec.Command("/bin/bash", "--norc", "-i")
	cmd.Env = []string{"PS1=$ ", "TERM=dumb"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setctty: true}
	w.start(cmd)
	require.NoError(w, slave.Close())
	go t.read()
	w.Cleanup(func() {
		_ = w.tree.write("cgroup.kill", "1")
		for range t.seen { // until the last of its processes has gone
		}
		_ = t.master.Close()
	})
	return t
}

func (t *terminal) read() {
	defer close(t.seen)
	buf := make([]byte, 4096)
	for {
		n, err := t.master.Read(buf)
		if err != nil {
			return
		}
		t.seen <- string(buf[:n])
	}
}

// types types a line and reads until the answer.
func (t *terminal) types(line, answer string) {
	t.Helper()
	_, err := t.master.WriteString(line)
	require.NoError(t, err)
	from := len(t.said)
	for !strings.Contains(t.said[from:], answer) {
		select {
		case more, open := <-t.seen:
			require.True(t, open, "the shell ended: %q", t.said)
			t.said += more
		case <-time.After(guesttest.Patience):
			require.Fail(t, "no answer", "%q in %q", answer, t.said)
		}
	}
}

// A shell with a job in front, one behind and one that the user has stopped finds all three as
// they were.
func TestShellDoesNotNotice(t *testing.T) {
	eachFreezer(t, func(w *world) {
		s := w.terminal()
		s.types("PS1='re''ady$ '\n", "ready$ ")
		s.types("sleep 1000 &\n", "ready$ ")
		s.types("(echo on''e; cat) | cat\n", "one\r\n")
		s.types("first\n", "first\r\nfirst\r\n")
		s.types("\x1a", "ready$ ") // Ctrl-Z
		require.Equal(w, 1, strings.Count(s.said, "Stopped"))
		s.types("(echo tw''o; tail -f /dev/null) | cat\n", "two\r\n")
		freezes(w, 20)
		s.types("\x1a", "ready$ ")
		require.Equal(w, 2, strings.Count(s.said, "Stopped"), "Ctrl-Z reached the job in front: %q", s.said)
		freezes(w, 20)
		before := len(s.said)
		s.types("jobs; echo en''d\n", "end\r\n")
		jobs := s.said[before:]
		require.Equal(w, 1, strings.Count(jobs, "Running"), jobs)
		require.Equal(w, 2, strings.Count(jobs, "Stopped"), jobs)
		stopped := w.stopped()
		s.types("fg %2\n", "cat\r\n")
		w.wait("job in front", func() bool { return w.stopped() < stopped })
		freezes(w, 20)
		s.types("second\n", "second\r\nsecond\r\n")
		s.types("\x04", "ready$ ")
		s.types("kill %1 %3; kill -CONT %3; wait; echo code-$?\n", "code-")
		require.Equal(w, 4, strings.Count(s.said, "Stopped"), "no freeze was noticed: %q", s.said)
	})
}

// stopped counts the processes that are.
func (w *world) stopped() (n int) {
	for _, pid := range w.tree.pids() {
		if state(pid) == "T" {
			n++
		}
	}
	return n
}

func freezes(w *world, n int) {
	w.Helper()
	for range n {
		w.freeze()
		w.thaw()
	}
}
