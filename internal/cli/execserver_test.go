package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

// execHandler is the generated handler with /exec/stream over it, which upgrades.
type execHandler struct {
	v1.ServerInterface
	s *server
}

func (h execHandler) StreamExec(w http.ResponseWriter, r *http.Request, id v1.SandboxID) {
	if err := h.s.awake(id); err != nil {
		writeProblem(w, err)
		return
	}
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer func() { _ = conn.CloseNow() }()
	e := &execution{s: h.s, conn: conn, ctx: r.Context()}
	e.serve()
	_ = conn.Close(websocket.StatusNormalClosure, "")
}

// execution runs one local process for one WebSocket.
type execution struct {
	s     *server
	conn  *websocket.Conn
	ctx   context.Context //nolint:containedctx // An execution is one request.
	cmd   *exec.Cmd
	input io.WriteCloser
	tty   *os.File
}

func (e *execution) say(v any) {
	text, _ := json.Marshal(v)
	_ = e.conn.Write(e.ctx, websocket.MessageText, text)
}

func (e *execution) serve() {
	_, text, err := e.conn.Read(e.ctx)
	if err != nil {
		return
	}
	var start v1.ExecStart
	if err := json.Unmarshal(text, &start); err != nil || len(start.Cmd) == 0 {
		return
	}
	e.s.mu.Lock()
	e.s.starts = append(e.s.starts, start)
	e.s.mu.Unlock()
	if start.Cmd[0] == "cut-me" {
		_ = e.conn.CloseNow()
		return
	}
	pump, err := e.start(start)
	if err != nil {
		hint := "is it installed?"
		e.say(map[string]v1.Error{"error": {Code: "not_found", Message: err.Error(), Hint: &hint}})
		return
	}
	e.say(map[string]map[string]int{"started": {"pid": e.cmd.Process.Pid}})
	go e.receive()
	pump()
	e.say(map[string]v1.ExecExit{"exit": exitOf(e.cmd.Wait())})
}

func (e *execution) start(start v1.ExecStart) (pump func(), err error) {
	e.cmd = exec.CommandContext(e.ctx, start.Cmd[0], start.Cmd[1:]...)
	e.cmd.Dir = e.s.guest
	if start.Cwd != nil {
		e.cmd.Dir = *start.Cwd
	}
	e.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + e.s.guest}
	if start.Env != nil {
		for k, v := range *start.Env {
			e.cmd.Env = append(e.cmd.Env, k+"="+v)
		}
	}
	if start.Pty != nil {
		return e.startTerminal(*start.Pty)
	}
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if start.Stdin != nil && *start.Stdin {
		e.input, _ = e.cmd.StdinPipe()
	}
	stdout, _ := e.cmd.StdoutPipe()
	stderr, _ := e.cmd.StderrPipe()
	if err := e.cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		var outputs sync.WaitGroup
		outputs.Go(func() { e.pump(1, stdout) })
		outputs.Go(func() { e.pump(2, stderr) })
		outputs.Wait()
	}, nil
}

func (e *execution) startTerminal(size v1.PTYSize) (pump func(), err error) {
	tty, err := pty.StartWithSize(e.cmd, &pty.Winsize{Cols: uint16(size.Cols), Rows: uint16(size.Rows)})
	if err != nil {
		return nil, err
	}
	e.tty, e.input = tty, tty
	return func() { e.pump(3, tty); _ = tty.Close() }, nil
}

func (e *execution) pump(stream byte, r io.Reader) {
	buf := make([]byte, 32<<10)
	buf[0] = stream
	for {
		n, err := r.Read(buf[1:])
		if n > 0 {
			_ = e.conn.Write(e.ctx, websocket.MessageBinary, buf[:n+1])
		}
		if err != nil {
			return
		}
	}
}

// receive obeys the client; when it is gone the process is killed.
func (e *execution) receive() {
	for {
		kind, message, err := e.conn.Read(e.ctx)
		if err != nil {
			_ = syscall.Kill(-e.cmd.Process.Pid, syscall.SIGKILL)
			return
		}
		if kind == websocket.MessageBinary {
			if message[0] == 0 && e.input != nil {
				_, _ = e.input.Write(message[1:])
			}
			continue
		}
		e.obey(message)
	}
}

func (e *execution) obey(message []byte) {
	var c struct {
		Resize   *v1.PTYSize `json:"resize"`
		Signal   string      `json:"signal"`
		StdinEOF bool        `json:"stdin_eof"`
	}
	_ = json.Unmarshal(message, &c)
	e.s.mu.Lock()
	defer e.s.mu.Unlock()
	switch {
	case c.Resize != nil:
		_ = pty.Setsize(e.tty, &pty.Winsize{Cols: uint16(c.Resize.Cols), Rows: uint16(c.Resize.Rows)})
		e.s.resizes = append(e.s.resizes, *c.Resize)
		e.s.events <- "resize"
	case c.Signal != "":
		_ = syscall.Kill(-e.cmd.Process.Pid, unix.SignalNum(c.Signal))
		e.s.signals = append(e.s.signals, c.Signal)
		e.s.events <- c.Signal
	case c.StdinEOF && e.input != nil:
		_ = e.input.Close()
	}
}

func exitOf(err error) v1.ExecExit {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return v1.ExecExit{}
	}
	status := exit.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		name := unix.SignalName(status.Signal())
		return v1.ExecExit{ExitCode: 128 + int(status.Signal()), Signal: &name}
	}
	return v1.ExecExit{ExitCode: status.ExitStatus()}
}

// wantEvent waits for the next signal or resize that came from a client.
func (s *server) wantEvent(t *testing.T, want string) {
	t.Helper()
	select {
	case got := <-s.events:
		require.Equal(t, want, got)
	case <-time.After(patience):
		require.FailNow(t, "it did not come", want)
	}
}
