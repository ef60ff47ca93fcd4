package cli_test

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
	"golang.org/x/sys/unix"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// screen is a roost process on a terminal of its own.
type screen struct {
	t      *testing.T
	s      *server
	cmd    *exec.Cmd
	keys   *os.File // The master side.
	tty    *os.File // The slave side, held open to look at its settings.
	before unix.Termios
	ended  chan struct{}

	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func (s *server) onTerminal(t *testing.T, cmd *exec.Cmd) *screen {
	t.Helper()
	master, slave, err := pty.Open()
	require.NoError(t, err)
	require.NoError(t, pty.Setsize(master, &pty.Winsize{Cols: 100, Rows: 30}))
	sc := &screen{t: t, s: s, cmd: cmd, keys: master, tty: slave, ended: make(chan struct{}), more: make(chan struct{}, 1)}
	sc.before = sc.settings()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	require.NoError(t, cmd.Start())
	go sc.read()
	t.Cleanup(func() {
		_ = slave.Close()
		<-sc.ended
		_ = master.Close()
	})
	return sc
}

func (sc *screen) settings() unix.Termios {
	sc.t.Helper()
	got, err := unix.IoctlGetTermios(int(sc.tty.Fd()), unix.TCGETS)
	require.NoError(sc.t, err)
	return *got
}

func (sc *screen) read() {
	defer close(sc.ended)
	buf := make([]byte, 4096)
	for {
		n, err := sc.keys.Read(buf)
		sc.mu.Lock()
		sc.text.Write(buf[:n])
		sc.mu.Unlock()
		select {
		case sc.more <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

func (sc *screen) shown() string {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	return sc.text.String()
}

func (sc *screen) want(text string) {
	sc.t.Helper()
	late := time.After(patience)
	for !strings.Contains(sc.shown(), text) {
		select {
		case <-sc.more:
		case <-late:
			require.FailNow(sc.t, "not on the screen", "%q in %q", text, sc.shown())
		}
	}
}

func (sc *screen) press(keys string) {
	sc.t.Helper()
	_, err := sc.keys.WriteString(keys)
	require.NoError(sc.t, err)
}

// code waits for the process and checks that the terminal is as it was before.
func (sc *screen) code() int {
	sc.t.Helper()
	_ = sc.cmd.Wait()
	sc.s.settle()
	require.Equal(sc.t, sc.before, sc.settings(), "the terminal's settings are restored")
	return sc.cmd.ProcessState.ExitCode()
}

func TestShellOnATerminal(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	sc := s.onTerminal(t, s.command(t, "shell", running))
	sc.press("stty size; echo term=$TERM\r")
	sc.want("30 100\r\n")
	sc.want("term=xterm-test\r\n")
	require.NotEqual(t, sc.before.Lflag, sc.settings().Lflag, "raw: keys go to the remote side")
	// Reading a line, bash first writes back the size that it has read: only after its prompt
	// does another size stay.
	sc.press("PS1='pro''mpt> '\r")
	sc.want("prompt> ")
	require.NoError(t, pty.Setsize(sc.keys, &pty.Winsize{Cols: 70, Rows: 20}))
	s.wantEvent(t, "resize")
	sc.press("stty size\r")
	sc.want("20 70\r\n")
	sc.press(`sh -c 'trap "echo caught=\$((1+1)); exit" INT; echo waits=$((2+2)); while :; do sleep 0.05; done'` + "\r")
	sc.want("waits=4")
	sc.press("\x03")
	sc.want("caught=2")
	sc.press("echo back=$((40+2))\r")
	sc.want("back=42")
	sc.press("exit 5\r")
	require.Equal(t, 5, sc.code())
	require.Equal(t, []v1.PTYSize{{Cols: 70, Rows: 20}}, s.resizes)
	require.Empty(t, s.signals, "Ctrl-C in a shell is a key, not a signal")
}

func TestShellRestoresTheTerminalWhenTerminated(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	sc := s.onTerminal(t, s.command(t, "exec", "-t", running, "--", "sh", "-c", "trap '' HUP; echo ready; while :; do sleep 0.05; done"))
	sc.want("ready\r\n")
	require.NoError(t, sc.cmd.Process.Signal(syscall.SIGTERM))
	s.wantEvent(t, "SIGHUP")
	require.Equal(t, 143, sc.code(), "the command would not go, so we do")
}

func TestShellRestoresTheTerminalWhenCut(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	sc := s.onTerminal(t, s.command(t, "exec", "-t", running, "--", "cut-me"))
	require.Equal(t, 125, sc.code())
	sc.want("the connection ended before the command did")
}

func TestExecOnATerminalTakesNoInputUnlessAsked(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	sc := s.onTerminal(t, s.command(t, "exec", running, "--", "sh", "-c", "wc -c; tty"))
	sc.want("not a tty")
	require.Equal(t, 1, sc.code())
	require.False(t, *s.starts[0].Stdin)
	sc = s.onTerminal(t, s.command(t, "exec", "-i", running, "--", "sh", "-c", "read x; echo got=$x"))
	sc.press("word\r")
	sc.want("got=word")
	require.Equal(t, 0, sc.code())
}

func TestExecCtrlCOnATerminal(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	sc := s.onTerminal(t, s.command(t, "exec", running, "--", "sh", "-c", "echo ready; exec sleep 60"))
	sc.want("ready")
	sc.press("\x03")
	s.wantEvent(t, "SIGINT")
	require.Equal(t, 130, sc.code())
}

func TestRmAllAsks(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	sc := s.onTerminal(t, s.command(t, "rm", "--all"))
	sc.want("Delete 3 sandboxes")
	sc.press("n\r")
	require.Equal(t, 1, sc.code())
	require.Len(t, s.sandboxes, 3)
	sc = s.onTerminal(t, s.command(t, "rm", "--all"))
	sc.want("[y/N]")
	sc.press("y\r")
	require.Equal(t, 0, sc.code())
	require.Empty(t, s.sandboxes)
}

func TestCreateSpinsOnATerminal(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	gate := make(chan struct{})
	s.progress = func(send func(string)) {
		send(`{"progress":{"step":"booting"}}`)
		<-gate
		send(`{"sandbox":{"id":"` + running + `","runtime":"gvisor","isolation":"sentry"}}`)
	}
	sc := s.onTerminal(t, s.command(t, "create"))
	sc.want(" booting (0 s)")
	close(gate)
	require.Equal(t, 0, sc.code())
	sc.want("\r\x1b[Kroost: it runs in gvisor, isolation sentry\r\n" + running + "\r\n")
}

func TestInterruptedCreate(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	asked := make(chan struct{})
	gate := make(chan struct{})
	s.progress = func(func(string)) { close(asked); <-gate }
	sc := s.onTerminal(t, s.command(t, "create"))
	<-asked
	sc.press("\x03")
	require.Equal(t, 130, sc.code())
	close(gate)
	sc.want("roost: create: interrupted")
}

func TestLogsCannotCommandATerminal(t *testing.T) {
	t.Parallel()
	for _, follow := range []string{"--follow=false", "--follow"} {
		s := newServer(t)
		s.console = []byte("\x1b]52;c;ZXZpbA==\x07line\n")
		s.sandboxes[running].State = v1.Failed
		sc := s.onTerminal(t, s.command(t, "logs", follow, running))
		sc.want("]52;c;ZXZpbA==line\r\n")
		require.Equal(t, 0, sc.code())
		require.NotContains(t, sc.shown(), "\x1b")
		require.Contains(t, s.ok(t, "logs", follow, running), "\x1b", "a file gets it as it is")
	}
}
