package cli_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience bounds waits that only a bug makes long.
const patience = 20 * time.Second

// lineReader reads lines, failing the test when one does not come.
func lineReader(t *testing.T, r io.Reader) func() string {
	t.Helper()
	lines := make(chan string, 1024)
	go func() {
		defer close(lines)
		in := bufio.NewReader(r)
		for {
			line, err := in.ReadString('\n')
			if line != "" {
				lines <- line
			}
			if err != nil {
				return
			}
		}
	}()
	return func() string {
		t.Helper()
		select {
		case line := <-lines:
			return line
		case <-time.After(patience):
			require.FailNow(t, "no line came")
			return ""
		}
	}
}

func TestExecSeparatesStreamsAndPassesTheCode(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := s.run(t, nil, "exec", running, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
	require.Equal(t, result{"out\n", "err\n", 7}, r)
	require.Equal(t, 137, s.run(t, nil, "exec", running, "--", "sh", "-c", "kill -9 $$").code)
	require.Equal(t, "-x\n", s.ok(t, "exec", running, "echo", "-x"), "flags of the command are not ours")
	require.Equal(t, "1 /tmp\n", s.ok(t, "exec", running, "--env", "A=1", "--cwd", "/tmp", "--user", "bob", "--timeout", "1m", "--", "sh", "-c", "echo $A $PWD"))
	last := s.starts[len(s.starts)-1]
	require.Equal(t, "bob", *last.User)
	require.Equal(t, 60, *last.TimeoutS)
}

func TestExecOwnFailuresExit125(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := s.run(t, nil, "exec", pausedID, "--", "true")
	require.Equal(t, result{"", "roost: exec " + pausedID + ": it is paused\nhint: roost resume " + pausedID + "\n", 125}, r)
	r = s.run(t, nil, "exec", running, "--", "/no/such/program")
	require.Equal(t, 125, r.code)
	require.Contains(t, r.stderr, "no such file or directory\nhint: is it installed?")
	r = s.run(t, nil, "exec", running, "--", "cut-me")
	require.Equal(t, 125, r.code)
	require.Contains(t, r.stderr, "the connection ended before the command did")
	r = s.run(t, nil, "exec", running, "--json", "--", "cut-me")
	require.Contains(t, r.stderr, `{"error":{"code":"unavailable"`)
}

func TestExecPassesStdin(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	r := s.run(t, bytes.NewReader(big), "exec", running, "--", "cat")
	require.Equal(t, 0, r.code)
	require.True(t, string(big) == r.stdout, "1 MiB comes back as it went")
	require.Equal(t, "0\n", s.ok(t, "exec", running, "--", "sh", "-c", "cat | wc -c"), "an empty stdin ends at once")
}

func TestExecEndsWithTheCommandWhileStdinStaysOpen(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	defer func() { _ = reader.Close(); _ = writer.Close() }()
	require.Equal(t, 3, s.run(t, reader, "exec", running, "--", "sh", "-c", "exit 3").code)
}

func TestExecStreamsAsItComes(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cmd := s.command(t, "exec", running, "--", "sh", "-c", "while read line; do echo got $line; done")
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	read := lineReader(t, out)
	for _, word := range []string{"a", "b"} {
		_, _ = io.WriteString(in, word+"\n")
		require.Equal(t, "got "+word+"\n", read(), "before stdin ends")
	}
	_ = in.Close()
	require.NoError(t, cmd.Wait())
}

func TestExecJSONLines(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := s.run(t, nil, "exec", running, "--json", "--", "sh", "-c", "echo out; echo err >&2; exit 4")
	require.Equal(t, 4, r.code)
	require.Empty(t, r.stderr)
	got := map[string]bool{}
	for _, line := range strings.Split(strings.TrimSpace(r.stdout), "\n") {
		var event map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &event))
		for name, value := range event {
			got[name] = true
			switch name {
			case "stdout":
				require.Equal(t, "b3V0Cg==", value)
			case "exit":
				require.EqualValues(t, 4, value.(map[string]any)["exit_code"])
			}
		}
	}
	require.Equal(t, map[string]bool{"started": true, "stdout": true, "stderr": true, "exit": true}, got)
}

// startTrap starts a remote command that says "ready" and answers signals as the script says.
func startTrap(t *testing.T, s *server, script string, flags ...string) (*exec.Cmd, func() string) {
	t.Helper()
	args := append([]string{"exec", running}, flags...)
	cmd := s.command(t, append(args, "--", "sh", "-c", script)...)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	read := lineReader(t, out)
	require.Equal(t, "ready\n", read())
	return cmd, read
}

func exitCode(cmd *exec.Cmd) int {
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode()
}

func TestExecPassesSignals(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	for sig, code := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143, syscall.SIGHUP: 129, syscall.SIGQUIT: 131} {
		cmd, _ := startTrap(t, s, "echo ready; exec sleep 60")
		require.NoError(t, cmd.Process.Signal(sig))
		require.Equal(t, code, exitCode(cmd), sig.String())
	}
	cmd, read := startTrap(t, s, "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.05; done")
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	require.Equal(t, "caught\n", read())
	require.Equal(t, 9, exitCode(cmd))
}

func TestExecSecondCtrlCKills(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cmd, _ := startTrap(t, s, "trap '' INT; echo ready; while :; do sleep 0.05; done")
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	s.wantEvent(t, "SIGINT")
	require.NoError(t, cmd.Process.Signal(os.Interrupt))
	s.wantEvent(t, "SIGKILL")
	require.Equal(t, 137, exitCode(cmd))
}

func TestExecIntoAClosedPipeEndsTheCommand(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	cmd := s.command(t, "exec", running, "--", "yes")
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	_, err = io.ReadFull(out, make([]byte, 10))
	require.NoError(t, err)
	require.NoError(t, out.Close())
	require.Equal(t, 141, exitCode(cmd))
	s.wantEvent(t, "SIGTERM")
}

func TestExecTerminalWithoutOne(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := s.run(t, strings.NewReader("hello"), "exec", "-t", running, "--", "sh", "-c", "stty size; test -t 1 && cat && echo end $TERM")
	require.Equal(t, 0, r.code)
	require.Contains(t, r.stdout, "24 80\r\n")
	require.Contains(t, r.stdout, "end xterm-test\r\n", "the end of stdin is a Ctrl-D to the terminal")
}

func TestShellWithoutTerminal(t *testing.T) {
	t.Parallel()
	s := newServer(t)
	r := s.run(t, nil, "shell", running)
	require.Equal(t, result{"", "roost: shell " + running + ": stdin is no terminal\nhint: a shell needs one; run single commands with `roost exec ID -- CMD`\n", 125}, r)
}
