package e2e

import (
	"bytes"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/require"
)

// screen collects what a terminal shows.
type screen struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}

func (s *screen) shows(text string) func() bool {
	return func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return strings.Contains(s.out.String(), text)
	}
}

// terminal runs the command line on a terminal of its own.
func (r *roost) terminal(rows, cols uint16, args ...string) (*os.File, *screen, *exec.Cmd) {
	r.t.Helper()
	cmd := exec.Command(roostBin, args...)
	cmd.Env = append(os.Environ(), "ROOST_DATA="+r.data, "XDG_CONFIG_HOME="+r.data, "TERM=xterm")
	tty, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: rows, Cols: cols})
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = tty.Close() })
	s := &screen{}
	go func() { // ends with the terminal
		buf := make([]byte, 4096)
		for {
			n, err := tty.Read(buf)
			_, _ = s.Write(buf[:n])
			if err != nil {
				return
			}
		}
	}()
	return tty, s, cmd
}

// TestShell: a real terminal in a real guest: size, resize, Ctrl-C, exit code.
func TestShell(t *testing.T) {
	t.Parallel()
	r := start(t)
	id := r.run("create")
	tty, s, cmd := r.terminal(30, 100, "shell", id)
	say := func(line string) {
		_, err := tty.WriteString(line)
		require.NoError(t, err)
	}
	const limit = 30 * time.Second
	say("echo size $(stty size)\n")
	eventually(t, limit, "the shell has the terminal's size", s.shows("size 30 100"))
	say("PS1='re''ady> '\n") // before its prompt, bash writes back the size that it has read
	eventually(t, limit, "the prompt is there", s.shows("ready> "))
	require.NoError(t, pty.Setsize(tty, &pty.Winsize{Rows: 40, Cols: 120}))
	eventually(t, limit, "a resize arrives", func() bool {
		say("echo size $(stty size)\n")
		time.Sleep(200 * time.Millisecond)
		return s.shows("size 40 120")()
	})
	say("sleep 1000; echo code $?\n")
	eventually(t, limit, "it sleeps", func() bool { return strings.Contains(r.sh(id, "ps -e -o args"), "sleep 1000") })
	say("\x03")
	eventually(t, limit, "Ctrl-C ended it", func() bool { return !strings.Contains(r.sh(id, "ps -e -o args"), "sleep 1000") })
	time.Sleep(300 * time.Millisecond) // bash loses what is typed right after Ctrl-C
	say("exit 5\n")
	_ = cmd.Wait()
	require.Equal(t, 5, cmd.ProcessState.ExitCode())
}

// TestInterrupt: Ctrl-C on `roost exec` reaches the remote process, and its exit code comes
// back.
func TestInterrupt(t *testing.T) {
	t.Parallel()
	r := start(t)
	id := r.run("create")
	cmd := exec.Command(roostBin, "exec", id, "--", "sh", "-c", "trap 'echo interrupted; exit 9' INT; echo waiting; while :; do sleep 0.1; done")
	cmd.Env = append(os.Environ(), "ROOST_DATA="+r.data, "XDG_CONFIG_HOME="+r.data)
	s := &screen{}
	cmd.Stdout = s
	require.NoError(t, cmd.Start())
	eventually(t, 30*time.Second, "it runs", s.shows("waiting"))
	require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	_ = cmd.Wait()
	require.Equal(t, 9, cmd.ProcessState.ExitCode())
	require.True(t, s.shows("interrupted")())
	eventually(t, 10*time.Second, "nothing is left in the guest", func() bool { return !strings.Contains(r.sh(id, "ps -e -o args"), "trap") })
}
