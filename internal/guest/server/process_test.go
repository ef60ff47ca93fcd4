package server

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	processpb "github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/api/gen/process/processconnect"
	"github.com/roosthq/roost/internal/guest/guesttest"
)

func TestOutputAndExit(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	out, errs, end := g.start(t.Context(), shell("echo one; echo two >&2; exit 3")).finish()
	require.Equal(t, "one\n", out)
	require.Equal(t, "two\n", errs)
	require.EqualValues(t, 3, end.GetExitCode())
	require.True(t, end.GetExited())
	require.Equal(t, "exit status 3", end.GetStatus())
	require.Equal(t, "exit status 3", end.GetError())
}

func TestEnvironmentUserAndGroups(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	msg := shell("id -u; id -g; id -G; pwd; echo $HOME $USER $LOGNAME $SHELL $GLOBAL $OWN; echo $PATH")
	msg.Process.Envs = map[string]string{"OWN": "mine"}
	out, _, _ := g.start(t.Context(), msg).finish()
	want := fmt.Sprintf("%d\n%d\n%d %d\n%s\n%s user user /bin/bash yes mine\n/usr/local/sbin:", testUID, testUID, testUID, testUID+1, g.home, g.home)
	require.True(t, strings.HasPrefix(out, want), "%s", out)

	req := connect.NewRequest(shell("id -u"))
	req.Header().Set("Authorization", as("root"))
	stream, err := g.process.Start(t.Context(), req)
	require.NoError(t, err)
	require.True(t, stream.Receive())
	root := &run{g: g, stream: stream}
	out, _, _ = root.finish()
	require.Equal(t, "0\n", out)

	req = connect.NewRequest(shell("id -u"))
	req.Header().Set("Authorization", as("nobody-here"))
	stream, err = g.process.Start(t.Context(), req)
	require.NoError(t, err)
	require.False(t, stream.Receive())
	requireCode(t, connect.CodeUnauthenticated, stream.Err())
}

func TestStartErrors(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	plain := g.home + "/plain"
	require.NoError(t, os.WriteFile(plain, []byte("x"), 0o644))
	for name, c := range map[string]struct {
		config *processpb.ProcessConfig
		code   connect.Code
		text   string
	}{
		"command":    {&processpb.ProcessConfig{Cmd: "no-such-command"}, connect.CodeNotFound, "no-such-command"},
		"file":       {&processpb.ProcessConfig{Cmd: "/no/such/file"}, connect.CodeNotFound, "/no/such/file"},
		"cwd":        {&processpb.ProcessConfig{Cmd: "ls", Cwd: proto.String("/no/dir")}, connect.CodeInvalidArgument, "cwd '/no/dir' does not exist"},
		"executable": {&processpb.ProcessConfig{Cmd: plain}, connect.CodePermissionDenied, "not executable"},
		"empty":      {&processpb.ProcessConfig{}, connect.CodeInvalidArgument, "empty"},
		"nul":        {&processpb.ProcessConfig{Cmd: "ls", Args: []string{"a\x00b"}}, connect.CodeInvalidArgument, "NUL"},
		"long cwd":   {&processpb.ProcessConfig{Cmd: "ls", Cwd: proto.String("/" + strings.Repeat("a", 5000))}, connect.CodeInvalidArgument, "4095"},
	} {
		t.Run(name, func(t *testing.T) {
			stream, err := g.process.Start(t.Context(), connect.NewRequest(&processpb.StartRequest{Process: c.config}))
			require.NoError(t, err)
			require.False(t, stream.Receive())
			requireCode(t, c.code, stream.Err())
			require.ErrorContains(t, stream.Err(), c.text)
		})
	}
	entries, err := os.ReadDir(g.cgroups + "/user")
	require.NoError(t, err)
	for _, e := range entries {
		require.False(t, e.IsDir(), "a failed start left cgroup %s", e.Name())
	}
}

func TestSixtyFourMegabytes(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	r := g.start(t.Context(), shell("head -c 67108864 /dev/zero"))
	total := 0
	for r.stream.Receive() {
		total += len(r.stream.Msg().GetEvent().GetData().GetStdout())
	}
	require.NoError(t, r.stream.Err())
	require.Equal(t, 64<<20, total)
}

func TestFastExitLosesNothing(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	for i := range 100 {
		require.Equal(t, fmt.Sprintln(i), g.exec("echo "+strconv.Itoa(i)))
	}
}

// A reader that does not read must hold the process back, not fill the guest's memory.
func TestSlowReaderBlocksTheProcess(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	mark := g.home + "/done"
	r := g.start(t.Context(), shell("head -c 67108864 /dev/zero; touch "+mark))
	require.Never(t, func() bool { _, err := os.Stat(mark); return err == nil }, 700*time.Millisecond, 50*time.Millisecond)
	out, _, end := r.finish()
	require.Len(t, out, 64<<20)
	require.Zero(t, end.GetExitCode())
}

func TestDisconnectKillsNothingAndConnectFindsIt(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	ctx, cancel := context.WithCancel(t.Context())
	mark := g.home + "/written"
	msg := shell("echo hello; read line; head -c 300000 /dev/zero | tr '\\0' x; touch " + mark + "; read line; echo bye")
	msg.Tag = proto.String("job")
	r := g.start(ctx, msg)
	r.until("hello")
	cancel()
	require.NoError(t, r.stream.Close())
	// The output of the time without a reader is discarded but its tail: nothing blocks.
	g.send(r.pid, "go\n")
	require.Eventually(t, func() bool { _, err := os.Stat(mark); return err == nil }, 30*time.Second, 5*time.Millisecond)
	// The last piece may be on its way from the pipe: it comes with the tail or after it.
	g.send(r.pid, "go\n")

	selector := &processpb.ProcessSelector{Selector: &processpb.ProcessSelector_Tag{Tag: "job"}}
	req := connect.NewRequest(&processpb.ConnectRequest{Process: selector})
	req.Header().Set("Roost-Replay", "true")
	stream, err := g.process.Connect(t.Context(), req)
	require.NoError(t, err)
	var out strings.Builder
	var end *processpb.ProcessEvent_EndEvent
	for stream.Receive() {
		e := stream.Msg().GetEvent()
		out.Write(e.GetData().GetStdout())
		end = e.GetEnd()
	}
	require.NoError(t, stream.Err())
	require.Zero(t, end.GetExitCode())
	require.True(t, strings.HasSuffix(out.String(), "xbye\n"))
	require.Less(t, out.Len(), 300000)
}

func (g *guest) send(pid uint32, text string) {
	g.t.Helper()
	in := &processpb.ProcessInput{Input: &processpb.ProcessInput_Stdin{Stdin: []byte(text)}}
	_, err := g.process.SendInput(g.t.Context(), connect.NewRequest(&processpb.SendInputRequest{Process: byPID(pid), Input: in}))
	require.NoError(g.t, err)
}

func TestConnectToTheRecentlyEndedAndTheUnknown(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	r := g.start(t.Context(), shell("exit 5"))
	r.finish()
	stream, err := g.process.Connect(t.Context(), connect.NewRequest(&processpb.ConnectRequest{Process: byPID(r.pid)}))
	require.NoError(t, err)
	require.True(t, stream.Receive())
	require.Equal(t, r.pid, stream.Msg().GetEvent().GetStart().GetPid())
	require.True(t, stream.Receive())
	require.EqualValues(t, 5, stream.Msg().GetEvent().GetEnd().GetExitCode())
	require.False(t, stream.Receive())

	stream, err = g.process.Connect(t.Context(), connect.NewRequest(&processpb.ConnectRequest{Process: byPID(4000000)}))
	require.NoError(t, err)
	require.False(t, stream.Receive())
	requireCode(t, connect.CodeNotFound, stream.Err())
	requireCode(t, connect.CodeNotFound, g.signal(r.pid, processpb.Signal_SIGNAL_SIGKILL))
	requireCode(t, connect.CodeNotFound, g.signal(r.pid, processpb.Signal_SIGNAL_SIGTERM))
}

func alive(pid string) bool {
	n, _ := strconv.Atoi(strings.TrimSpace(pid))
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

func TestKillReachesTheWholeTree(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	// A grandchild in a session of its own, out of reach of any process group.
	r := g.start(t.Context(), shell("setsid sleep 1000 & echo $!; wait"))
	grandchild := r.until("\n")
	require.True(t, alive(grandchild))
	require.NoError(t, g.signal(r.pid, processpb.Signal_SIGNAL_SIGKILL))
	_, _, end := r.finish()
	require.EqualValues(t, -1, end.GetExitCode())
	require.False(t, end.GetExited())
	require.Equal(t, "signal: killed", end.GetError())
	require.Eventually(t, func() bool { return !alive(grandchild) }, 30*time.Second, 5*time.Millisecond)
}

func TestSignalsReachTheGroup(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	r := g.start(t.Context(), shell("trap 'echo got int; exit 9' INT; echo ready; while :; do sleep 1000 & wait; done"))
	r.until("ready")
	require.NoError(t, g.signal(r.pid, processpb.Signal_SIGNAL_SIGINT))
	out, _, end := r.finish()
	require.Equal(t, "got int\n", out)
	require.EqualValues(t, 9, end.GetExitCode())
	requireCode(t, connect.CodeNotFound, g.signal(r.pid, processpb.Signal_SIGNAL_SIGTERM))
	other := g.start(t.Context(), shell("echo up; sleep 1000"))
	other.until("up")
	requireCode(t, connect.CodeInvalidArgument, g.signal(other.pid, processpb.Signal(64)))
}

// A daemon that keeps the output open must not hold back the end, nor be killed.
func TestDaemonOutlivesItsCommand(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	began := time.Now()
	r := g.start(t.Context(), shell("sleep 1000 & echo $!"))
	out, _, end := r.finish()
	require.Zero(t, end.GetExitCode())
	require.Less(t, time.Since(began), 60*time.Second)
	require.True(t, alive(out))
}

// What the process wrote before its exit arrives although its reader is slower than the
// drain's two seconds and a daemon keeps the pipe open.
func TestDrainedBeforeEndEvenBySlowReader(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	r := g.start(t.Context(), shell("sleep 1000 & head -c 8388608 /dev/zero; printf last"))
	time.Sleep(2500 * time.Millisecond) // the slow reader
	out, _, _ := r.finish()
	require.Len(t, out, 8<<20+4)
	require.True(t, strings.HasSuffix(out, "last"))
}

func TestLifetimeKillsTheTree(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	req := connect.NewRequest(shell("setsid sleep 1000 & echo $!; wait"))
	req.Header().Set("Connect-Timeout-Ms", "500") // by hand: the client itself must not give up
	stream, err := g.process.Start(t.Context(), req)
	require.NoError(t, err)
	require.True(t, stream.Receive())
	r := &run{g: g, stream: stream}
	child := r.until("\n")
	for stream.Receive() {
		require.Nil(t, stream.Msg().GetEvent().GetEnd())
	}
	requireCode(t, connect.CodeDeadlineExceeded, stream.Err())
	require.Eventually(t, func() bool { return !alive(child) }, 30*time.Second, 5*time.Millisecond)
}

func TestLifetimeHoldsWithoutTheClient(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	ctx, cancel := context.WithCancel(t.Context())
	req := connect.NewRequest(shell("echo $$; exec sleep 1000"))
	req.Header().Set("Connect-Timeout-Ms", "800")
	stream, err := g.process.Start(ctx, req)
	require.NoError(t, err)
	require.True(t, stream.Receive())
	pid := (&run{g: g, stream: stream}).until("\n")
	cancel()
	_ = stream.Close()
	require.True(t, alive(pid))
	require.Eventually(t, func() bool { return !alive(pid) }, 30*time.Second, 5*time.Millisecond)
}

func TestKeepalive(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	req := connect.NewRequest(shell("sleep 1000"))
	req.Header().Set("Keepalive-Ping-Interval", "1")
	stream, err := g.process.Start(t.Context(), req)
	require.NoError(t, err)
	require.True(t, stream.Receive())
	require.True(t, stream.Receive())
	require.NotNil(t, stream.Msg().GetEvent().GetKeepalive())
	_ = stream.Close()
}

func TestInput(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	r := g.start(t.Context(), &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "cat"}})
	g.send(r.pid, "abc")
	require.Equal(t, "abc", r.next())
	stream := g.process.StreamInput(t.Context())
	require.NoError(t, stream.Send(&processpb.StreamInputRequest{Event: &processpb.StreamInputRequest_Start{Start: &processpb.StreamInputRequest_StartEvent{Process: byPID(r.pid)}}}))
	for _, piece := range []string{"de", "f"} {
		in := &processpb.ProcessInput{Input: &processpb.ProcessInput_Stdin{Stdin: []byte(piece)}}
		require.NoError(t, stream.Send(&processpb.StreamInputRequest{Event: &processpb.StreamInputRequest_Data{Data: &processpb.StreamInputRequest_DataEvent{Input: in}}}))
	}
	_, err := stream.CloseAndReceive()
	require.NoError(t, err)
	require.Contains(t, r.until("f"), "f")
	_, err = g.process.CloseStdin(t.Context(), connect.NewRequest(&processpb.CloseStdinRequest{Process: byPID(r.pid)}))
	require.NoError(t, err)
	_, _, end := r.finish()
	require.Zero(t, end.GetExitCode())
}

// A process that never reads blocks its writer, until the writer's time is over.
func TestInputBackpressure(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	r := g.start(t.Context(), shell("sleep 1000"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	in := &processpb.ProcessInput{Input: &processpb.ProcessInput_Stdin{Stdin: make([]byte, 1<<20)}}
	_, err := g.process.SendInput(ctx, connect.NewRequest(&processpb.SendInputRequest{Process: byPID(r.pid), Input: in}))
	requireCode(t, connect.CodeDeadlineExceeded, err)
}

func TestNoStdin(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	msg := &processpb.StartRequest{Process: &processpb.ProcessConfig{Cmd: "cat"}, Stdin: proto.Bool(false)}
	out, _, end := g.start(t.Context(), msg).finish()
	require.Empty(t, out)
	require.Zero(t, end.GetExitCode())
}

func TestTerminal(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	msg := &processpb.StartRequest{
		Process: &processpb.ProcessConfig{Cmd: "/bin/bash", Args: []string{"--norc", "-i"}, Envs: map[string]string{"PS1": "$ "}},
		Pty:     &processpb.PTY{Size: &processpb.PTY_Size{Cols: 91, Rows: 17}},
	}
	r := g.start(t.Context(), msg)
	g.keys(r.pid, "stty size; tty; stat -c owner=%u $(tty)\n")
	got := r.until("owner=" + strconv.Itoa(testUID))
	require.Contains(t, got, "17 91")
	require.Contains(t, got, "/dev/pts/")
	g.keys(r.pid, "PS1='re''ady$ '\n")
	r.until("ready$ ") // before its prompt, bash writes back the size that it has read
	_, err := g.process.Update(t.Context(), connect.NewRequest(&processpb.UpdateRequest{
		Process: byPID(r.pid), Pty: &processpb.PTY{Size: &processpb.PTY_Size{Cols: 120, Rows: 40}},
	}))
	require.NoError(t, err)
	g.keys(r.pid, "stty size\n")
	r.until("40 120")
	g.keys(r.pid, "bash -c 'echo fg-$((20+1)); exec sleep 1000'\n")
	r.until("fg-21\r\n")
	g.keys(r.pid, "\x03") // Ctrl-C ends the sleep, not the shell
	r.until("$ ")         // bash loses what is typed while it handles the interrupt
	g.keys(r.pid, "echo still-$((40+2))\n")
	r.until("still-42")
	g.keys(r.pid, "exit 4\n")
	_, _, end := r.finish()
	require.EqualValues(t, 4, end.GetExitCode())
}

func (g *guest) keys(pid uint32, text string) {
	g.t.Helper()
	in := &processpb.ProcessInput{Input: &processpb.ProcessInput_Pty{Pty: []byte(text)}}
	_, err := g.process.SendInput(g.t.Context(), connect.NewRequest(&processpb.SendInputRequest{Process: byPID(pid), Input: in}))
	require.NoError(g.t, err)
}

func TestTerminalSignalGoesToForeground(t *testing.T) {
	t.Parallel()
	for name, sig := range map[string]syscall.Signal{"with a key": syscall.SIGQUIT, "without": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if sig == syscall.SIGTERM {
				guesttest.NotInGVisor(t, "its terminals do not tell their foreground group (TIOCGPGRP on the master, tpgid in /proc)")
			}
			g := newGuest(t)
			msg := &processpb.StartRequest{
				Process: &processpb.ProcessConfig{Cmd: "/bin/bash", Args: []string{"--norc", "-i"}, Envs: map[string]string{"PS1": "$ "}},
				Pty:     &processpb.PTY{},
			}
			r := g.start(t.Context(), msg)
			// Not a shell in front: it ignores SIGQUIT.
			g.keys(r.pid, "ulimit -c 0; echo fg-$((1+1)) > f; tail -f f; echo code-$?\n")
			r.until("fg-2")
			require.NoError(t, g.signal(r.pid, processpb.Signal(sig)))
			r.until("code-" + strconv.Itoa(128+int(sig)))
			require.NoError(t, g.signal(r.pid, processpb.Signal_SIGNAL_SIGKILL))
			r.finish()
		})
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	msg := shell("sleep 1000")
	msg.Tag = proto.String("sleeper")
	r := g.start(t.Context(), msg)
	res, err := g.process.List(t.Context(), connect.NewRequest(&processpb.ListRequest{}))
	require.NoError(t, err)
	require.Len(t, res.Msg.GetProcesses(), 1)
	p := res.Msg.GetProcesses()[0]
	require.Equal(t, r.pid, p.GetPid())
	require.Equal(t, "sleeper", p.GetTag())
	require.Equal(t, "/bin/bash", p.GetConfig().GetCmd())
	require.Equal(t, g.home, p.GetConfig().GetCwd())
}

// E2B's SDKs speak JSON over HTTP/1.1; there only a failed read tells that the client has gone.
func TestDisconnectOverHTTP1(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	client := &http.Client{Transport: &http.Transport{Protocols: protocols}}
	t.Cleanup(client.CloseIdleConnections)
	p := processconnect.NewProcessClient(client, g.url, connect.WithProtoJSON(), connect.WithInterceptors(tokens{access: accessToken}))
	ctx, cancel := context.WithCancel(t.Context())
	mark := g.home + "/done"
	stream, err := p.Start(ctx, connect.NewRequest(shell("echo first; head -c 67108864 /dev/zero; touch "+mark)))
	require.NoError(t, err)
	require.True(t, stream.Receive())
	r := &run{g: g, stream: stream}
	r.until("first")
	require.NoFileExists(t, mark)
	cancel()
	_ = stream.Close()
	require.Eventually(t, func() bool { _, err := os.Stat(mark); return err == nil }, 30*time.Second, 10*time.Millisecond)
}
