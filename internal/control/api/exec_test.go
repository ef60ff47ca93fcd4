package api_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/api/gen/process"
	v1 "github.com/roosthq/roost/api/gen/v1"
)

func (e *env) exec(id string, x v1.Exec) *v1.ExecSandboxResponse {
	e.Helper()
	r, err := e.client.ExecSandboxWithResponse(e.Context(), id, x)
	require.NoError(e, err)
	return r
}

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

func TestExec(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	r := e.exec(id, v1.Exec{Cmd: sh("echo out; echo err >&2; echo $A; pwd; exit 7"), Env: &map[string]string{"A": "b"},
		Cwd: ptr("/tmp"), User: ptr("root")})
	require.Equal(t, 200, r.StatusCode(), "%s", r.Body)
	require.Equal(t, 7, r.JSON200.ExitCode)
	require.Equal(t, "out\nb\n/tmp\n", string(r.JSON200.Stdout))
	require.Equal(t, "err\n", string(r.JSON200.Stderr))
	require.Nil(t, r.JSON200.Signal)
	require.Equal(t, "root", e.agent.Guest.LastUser())

	r = e.exec(id, v1.Exec{Cmd: []string{"true"}})
	require.Contains(t, string(r.Body), `"stdout":""`, "never null")

	r = e.exec(id, v1.Exec{Cmd: sh("kill -TERM $$")})
	require.Equal(t, 128+15, r.JSON200.ExitCode)
	require.Equal(t, "SIGTERM", *r.JSON200.Signal)

	input := strings.Repeat("0123456789abcdef", 100_000)
	r = e.exec(id, v1.Exec{Cmd: []string{"wc", "-c"}, Stdin: &input})
	require.Equal(t, "1600000", strings.TrimSpace(string(r.JSON200.Stdout)))
	r = e.exec(id, v1.Exec{Cmd: []string{"true"}, Stdin: &input})
	require.Equal(t, 0, r.JSON200.ExitCode, "a process need not read its input")
}

func TestExecOutputIsBounded(t *testing.T) {
	e := newEnv(t)
	r := e.exec(e.create(), v1.Exec{Cmd: sh("head -c 20000000 /dev/zero; echo done >&2")})
	require.Equal(t, 200, r.StatusCode())
	require.Len(t, r.JSON200.Stdout, 16<<20)
	require.Equal(t, "done\n", string(r.JSON200.Stderr), "the rest is drained")
	require.True(t, *r.JSON200.Truncated)
}

func TestExecTimeout(t *testing.T) {
	e := newEnv(t)
	r := e.exec(e.create(), v1.Exec{Cmd: []string{"sleep", "1000"}, TimeoutS: ptr(1)})
	require.Equal(t, 504, r.StatusCode())
	require.Equal(t, "deadline_exceeded", r.JSONDefault.Error.Code)
	require.Contains(t, r.JSONDefault.Error.Message, "longer than 1s")
	require.Eventually(t, func() bool { return e.agent.Guest.Running() == 0 }, 5*time.Second, time.Millisecond)
}

func TestClientGoneKillsItsExec(t *testing.T) {
	for _, when := range []string{"while it runs", "before it has started"} {
		t.Run(when, func(t *testing.T) {
			e := newEnv(t)
			id := e.create()
			ctx, leave := context.WithCancel(t.Context())
			defer leave()
			if when == "before it has started" {
				e.agent.Guest.Hold = make(chan struct{})
				time.AfterFunc(100*time.Millisecond, leave)
				time.AfterFunc(300*time.Millisecond, func() { close(e.agent.Guest.Hold) })
			}
			done := make(chan error, 1)
			go func() {
				_, err := e.client.ExecSandboxWithResponse(ctx, id, v1.Exec{Cmd: []string{"sleep", "1000"}, TimeoutS: ptr(0)})
				done <- err
			}()
			if when == "while it runs" {
				require.Eventually(t, func() bool { return e.agent.Guest.Running() == 1 }, 5*time.Second, time.Millisecond)
				leave()
			}
			require.ErrorIs(t, <-done, context.Canceled)
			require.Eventually(t, func() bool {
				return len(e.agent.Guest.Signals()) > 0 && e.agent.Guest.Running() == 0
			}, 10*time.Second, time.Millisecond)
			require.Equal(t, process.Signal_SIGNAL_SIGKILL, e.agent.Guest.Signals()[0])
		})
	}
}

// socket is the client's side of a session.
type socket struct {
	*env
	*websocket.Conn
}

type event struct {
	Started *struct{ PID uint32 }
	Exit    *v1.ExecExit
	Error   *v1.Error
}

func (e *env) dial(id, first string) *socket {
	e.Helper()
	conn, resp, err := websocket.Dial(e.Context(), e.url+"/v1/sandboxes/"+id+"/exec/stream", &websocket.DialOptions{ //nolint:bodyclose // the connection took it over
		HTTPClient: e.http, HTTPHeader: http.Header{"X-Api-Key": {e.key}}})
	require.NoError(e, err)
	require.Equal(e, 101, resp.StatusCode)
	e.Cleanup(func() { _ = conn.CloseNow() })
	conn.SetReadLimit(4 << 20)
	s := &socket{e, conn}
	s.text(first)
	return s
}

func (s *socket) text(m string) {
	s.Helper()
	require.NoError(s, s.Conn.Write(s.Context(), websocket.MessageText, []byte(m)))
}

func (s *socket) input(data string) {
	s.Helper()
	require.NoError(s, s.Conn.Write(s.Context(), websocket.MessageBinary, append([]byte{0}, data...)))
}

// event reads a text message, and the binary ones before it into out.
func (s *socket) event(out map[byte]*bytes.Buffer) event {
	s.Helper()
	for {
		kind, data, err := s.Conn.Read(s.Context())
		require.NoError(s, err)
		if kind == websocket.MessageText {
			var ev event
			require.NoError(s, json.Unmarshal(data, &ev))
			return ev
		}
		if out[data[0]] == nil {
			out[data[0]] = &bytes.Buffer{}
		}
		out[data[0]].Write(data[1:])
	}
}

// until reads output of a stream up to some text.
func (s *socket) until(stream byte, text string) {
	s.Helper()
	var got []byte
	for !bytes.Contains(got, []byte(text)) {
		kind, data, err := s.Conn.Read(s.Context())
		require.NoError(s, err)
		require.Equal(s, websocket.MessageBinary, kind, "%s", data)
		require.Equal(s, stream, data[0])
		got = append(got, data[1:]...)
	}
}

func start(cmd []string, more string) string {
	raw, _ := json.Marshal(cmd)
	return `{"cmd":` + string(raw) + more + `}`
}

func TestStream(t *testing.T) {
	e := newEnv(t)
	s := e.dial(e.create(), start(sh("cat; echo $V; echo err >&2; exit 3"), `,"stdin":true,"env":{"V":"w"},"cwd":"/","user":"user"`))
	out := map[byte]*bytes.Buffer{}
	require.NotZero(t, s.event(out).Started.PID)
	want := strings.Repeat("line of input\n", 10_000)
	for part := range strings.SplitSeq(strings.TrimSuffix(want, "\n"), "\n") {
		s.input(part + "\n")
	}
	s.text(`{"stdin_eof":true}`)
	ev := s.event(out)
	require.Equal(t, 3, ev.Exit.ExitCode)
	require.Equal(t, want+"w\n", out[1].String())
	require.Equal(t, "err\n", out[2].String())
	_, _, err := s.Conn.Read(t.Context())
	require.Equal(t, websocket.StatusNormalClosure, websocket.CloseStatus(err))
	require.Empty(t, e.agent.Guest.Signals())
}

func TestStreamSignal(t *testing.T) {
	e := newEnv(t)
	s := e.dial(e.create(), start([]string{"sleep", "1000"}, ""))
	s.event(nil)
	s.text(`{"signal":"SIGINT"}`)
	ev := s.event(nil)
	require.Equal(t, 130, ev.Exit.ExitCode)
	require.Equal(t, "SIGINT", *ev.Exit.Signal)
}

func TestStreamTerminal(t *testing.T) {
	e := newEnv(t)
	s := e.dial(e.create(), start(sh("read a; echo got $a; read b"), `,"pty":{"cols":80,"rows":24}`))
	pid := s.event(nil).Started.PID
	require.EqualValues(t, 80, e.agent.Guest.Size(pid).Cols)
	s.text(`{"resize":{"cols":132,"rows":43}}`)
	s.input("x\n")
	s.until(3, "got x\n")
	require.EqualValues(t, 132, e.agent.Guest.Size(pid).Cols)
	s.input("y\n")
	require.Zero(t, s.event(map[byte]*bytes.Buffer{}).Exit.ExitCode)
}

func TestStreamSignalPassesWaitingInput(t *testing.T) {
	e := newEnv(t)
	s := e.dial(e.create(), start([]string{"sleep", "1000"}, `,"stdin":true`))
	s.event(nil)
	for range 40 { // more than a pipe holds
		s.input(strings.Repeat("x", 32<<10))
	}
	s.text(`{"signal":"SIGTERM"}`)
	require.Equal(t, "SIGTERM", *s.event(nil).Exit.Signal)
}

func TestStreamLifetime(t *testing.T) {
	e := newEnv(t)
	s := e.dial(e.create(), start([]string{"sleep", "1000"}, `,"timeout_s":1`))
	s.event(nil)
	require.Equal(t, "deadline_exceeded", s.event(nil).Error.Code)
}

func TestBrokenStreamHangsUp(t *testing.T) {
	e := newEnv(t)
	s := e.dial(e.create(), start([]string{"sleep", "1000"}, ""))
	s.event(nil)
	require.NoError(t, s.Conn.CloseNow())
	require.Eventually(t, func() bool { return e.agent.Guest.Running() == 0 }, 5*time.Second, time.Millisecond)
	require.Equal(t, []process.Signal{process.Signal_SIGNAL_SIGHUP}, e.agent.Guest.Signals())
}

func TestDetachAndConnect(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	s := e.dial(id, start(sh("read a; echo got $a"), `,"stdin":true`))
	pid := s.event(nil).Started.PID
	require.NoError(t, s.Conn.Close(websocket.StatusNormalClosure, ""))
	require.Equal(t, 1, e.agent.Guest.Running(), "closing in form detaches")

	raw, err := json.Marshal(map[string]uint32{"connect": pid})
	require.NoError(t, err)
	other := e.dial(id, string(raw))
	require.Equal(t, pid, other.event(nil).Started.PID)
	require.NoError(t, other.Conn.CloseNow())
	s = e.dial(id, string(raw))
	require.Equal(t, pid, s.event(nil).Started.PID, "an attached process does not hang up")
	s.input("x\n")
	// The broken session may take an event of the test's guest with it, which has one queue.
	_, _, _ = s.Conn.Read(t.Context())
	require.Eventually(t, func() bool { return e.agent.Guest.Running() == 0 }, 5*time.Second, time.Millisecond)
	require.Empty(t, e.agent.Guest.Signals())

	gone := e.dial(id, string(raw))
	require.Equal(t, "not_found", gone.event(nil).Error.Code)
}

func TestStreamBadMessages(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	for _, first := range []string{`{`, `{"cmd":[]}`, `{}`, `{"what":1}`, `{"cmd":["true"],"connect":5}`,
		`{"cmd":["true"],"pty":{"cols":0,"rows":1}}`, `{"cmd":["true"],"timeout_s":-1}`, `{"cmd":["/no/such"]}`,
		`{"cmd":["true"],"env":{"":""}}`} {
		require.Equal(t, "invalid_argument", e.dial(id, first).event(nil).Error.Code, first)
	}
	require.Zero(t, e.agent.Guest.Running())
	for _, later := range []string{`{"signal":"SIGSTOP"}`, `{"signal":"SIGNAL_UNSPECIFIED"}`, `{"resize":{"cols":-1,"rows":1}}`, `{}`, `null`, `[`} {
		s := e.dial(id, start([]string{"sleep", "1000"}, ""))
		s.event(nil)
		s.text(later)
		require.Equal(t, "invalid_argument", s.event(nil).Error.Code, later)
		require.Eventually(t, func() bool { return e.agent.Guest.Running() == 0 }, 5*time.Second, time.Millisecond, later)
	}
}

func TestStopEndsStreamsAndLeavesProcesses(t *testing.T) {
	e := newEnv(t)
	s := e.dial(e.create(), start([]string{"sleep", "1000"}, ""))
	s.event(nil)
	stopped := make(chan struct{})
	go func() { defer close(stopped); e.server.Stop() }()
	_, _, err := s.Conn.Read(t.Context())
	require.Equal(t, websocket.StatusGoingAway, websocket.CloseStatus(err), "%v", err)
	<-stopped
	require.Equal(t, 1, e.agent.Guest.Running())
	require.Empty(t, e.agent.Guest.Signals())
}

func TestFiles(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	sb := "/v1/sandboxes/" + id
	body := strings.Repeat("data\n", 1_000_000) // beyond any JSON bound
	status, raw := e.do("PUT", sb+"/files?path=/d/f&mode=0755&user=root", body)
	require.Equal(t, 200, status, raw)
	var entry v1.Entry
	require.NoError(t, json.Unmarshal([]byte(raw), &entry))
	require.Equal(t, v1.File, entry.Type)
	require.Equal(t, "0755", entry.Mode)
	require.EqualValues(t, len(body), entry.Size)
	require.Equal(t, "root", e.agent.Guest.LastUser())
	status, raw = e.do("GET", sb+"/files?path=/d/f", "")
	require.Equal(t, 200, status)
	require.True(t, body == raw)
	status, _ = e.do("PUT", sb+"/files?path=/d/empty", "")
	require.Equal(t, 200, status)
	status, raw = e.do("GET", sb+"/files?path=/d/empty", "")
	require.Equal(t, 200, status)
	require.Empty(t, raw)

	status, _ = e.do("POST", sb+"/files/mkdir?path=/d/sub", "")
	require.Equal(t, 201, status)
	status, raw = e.do("POST", sb+"/files/mkdir?path=/d/sub", "")
	require.Equal(t, 409, status)
	require.Equal(t, "already_exists", e.problem(raw).Code, "the kind is kept")
	list, err := e.client.ListFilesWithResponse(t.Context(), id, &v1.ListFilesParams{Path: "/d"})
	require.NoError(t, err)
	require.Len(t, list.JSON200.Entries, 3)
	stat, err := e.client.StatFileWithResponse(t.Context(), id, &v1.StatFileParams{Path: "/d/sub"})
	require.NoError(t, err)
	require.Equal(t, v1.Directory, stat.JSON200.Type)

	status, _ = e.do("PUT", sb+"/archive?path=/d/a.tar", "tar bytes", "Content-Type", "application/x-tar")
	require.Equal(t, 204, status)
	status, raw = e.do("GET", sb+"/archive?path=/d/a.tar", "")
	require.Equal(t, 200, status)
	require.Equal(t, "tar bytes", raw)

	status, _ = e.do("DELETE", sb+"/files?path=/d", "")
	require.Equal(t, 204, status)
	status, _ = e.do("GET", sb+"/files/stat?path=/d", "")
	require.Equal(t, 404, status)
}

type brokenReader struct{ n int }

func (b *brokenReader) Read(p []byte) (int, error) {
	if b.n++; b.n > 3 {
		return 0, errors.New("client's disk broke")
	}
	return copy(p, "some"), nil
}

func TestBrokenUploadLeavesNoFile(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	req, err := http.NewRequestWithContext(t.Context(), "PUT", e.url+"/v1/sandboxes/"+id+"/files?path=/half", &brokenReader{})
	require.NoError(t, err)
	req.Header.Set("X-API-Key", e.key)
	_, err = e.http.Do(req) //nolint:bodyclose // there is no response
	require.Error(t, err)
	require.Eventually(t, func() bool {
		status, _ := e.do("GET", "/v1/sandboxes/"+id+"/files/stat?path=/half", "")
		return status == 404
	}, 5*time.Second, 10*time.Millisecond)
}

func TestBrokenDownloadIsNotASuccess(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	status, _ := e.do("PUT", "/v1/sandboxes/"+id+"/files?path=/f", strings.Repeat("x", 64<<20))
	require.Equal(t, 200, status)
	req, err := http.NewRequestWithContext(t.Context(), "GET", e.url+"/v1/sandboxes/"+id+"/files?path=/f", nil)
	require.NoError(t, err)
	req.Header.Set("X-API-Key", e.key)
	resp, err := e.http.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	e.agent.Unlisten() // the guest goes in the middle
	_, err = io.Copy(io.Discard, resp.Body)
	require.Error(t, err)
}
