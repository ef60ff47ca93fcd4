package guestproxy

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	"github.com/roosthq/roost/api/gen/process"
	"github.com/roosthq/roost/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestExitOf(t *testing.T) {
	t.Parallel()
	text := func(s string) *string { return &s }
	for _, tt := range []struct {
		end  *process.ProcessEvent_EndEvent
		want Exit
	}{
		{&process.ProcessEvent_EndEvent{ExitCode: 0, Exited: true, Status: "exit status 0"}, Exit{}},
		{&process.ProcessEvent_EndEvent{ExitCode: 3, Exited: true, Error: text("exit status 3")}, Exit{Code: 3}},
		{&process.ProcessEvent_EndEvent{ExitCode: -1, Error: text("signal: killed")}, Exit{Code: 137, Signal: "SIGKILL"}},
		{&process.ProcessEvent_EndEvent{ExitCode: -1, Status: "signal: interrupt"}, Exit{Code: 130, Signal: "SIGINT"}},
		{&process.ProcessEvent_EndEvent{ExitCode: -1, Error: text("signal: segmentation fault (core dumped)")}, Exit{Code: 139, Signal: "SIGSEGV"}},
		{&process.ProcessEvent_EndEvent{ExitCode: -1, Error: text("wait: no child")}, Exit{Code: -1, Error: "wait: no child"}},
	} {
		require.Equal(t, tt.want, *exitOf(tt.end), "%v", tt.end)
	}
}

func TestParseSignal(t *testing.T) {
	t.Parallel()
	sig, err := ParseSignal("SIGHUP")
	require.NoError(t, err)
	require.Equal(t, process.Signal_SIGNAL_SIGHUP, sig)
	for _, bad := range []string{"", "UNSPECIFIED", "HUP", "SIGSTOP", "sigint"} {
		_, err := ParseSignal(bad)
		require.True(t, fault.Is(err, fault.Invalid), bad)
	}
}

func TestAnswerError(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		status int
		body   string
		kind   fault.Kind
		text   string
	}{
		{404, `{"code":404,"message":"no such file"}`, fault.NotFound, "no such file"},
		{507, `{"code":507,"message":"no space left"}`, fault.ResourceExhausted, "no space left"},
		{409, `{"code":"already_exists","message":"taken"}`, fault.AlreadyExists, "taken"},
		{502, `plain words`, fault.Unavailable, "plain words"},
		{418, ``, fault.Internal, "418 teapot"},
	} {
		err := answerError(&http.Response{StatusCode: tt.status, Status: "418 teapot", Header: http.Header{},
			Body: io.NopCloser(strings.NewReader(tt.body))})
		require.True(t, fault.Is(err, tt.kind), "%v", err)
		require.ErrorContains(t, err, tt.text)
	}
}

func TestChecks(t *testing.T) {
	t.Parallel()
	require.NoError(t, CheckUser("root"))
	require.NoError(t, CheckUser(""))
	require.Error(t, CheckUser("a:b"))
	require.Error(t, CheckUser("a b"))
	require.Error(t, CheckUser("é"))
	require.NoError(t, CheckPath("rel/path"))
	require.Error(t, CheckPath(strings.Repeat("x", 5000)))
}

// A guest that stops in the middle of an answer was paused or has ended: nobody's request was
// malformed.
func TestAProcessWhoseSandboxEnds(t *testing.T) {
	t.Parallel()
	start := &process.StartResponse{Event: &process.ProcessEvent{Event: &process.ProcessEvent_Start{
		Start: &process.ProcessEvent_StartEvent{Pid: 7},
	}}}
	raw, err := proto.Marshal(start)
	require.NoError(t, err)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/connect+proto")
		_, _ = w.Write(append([]byte{0, 0, 0, 0, byte(len(raw))}, raw...))
		_, _ = w.Write([]byte{0, 0}) // the beginning of another
	}))
	defer srv.Close()
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	p, err := New(srv.URL, transport).Guest("x", "").Start(t.Context(), Command{Cmd: []string{"sleep"}})
	require.NoError(t, err)
	defer p.Close()
	_, err = p.Next()
	require.Equal(t, fault.Unavailable, fault.KindOf(err), err)
	require.ErrorContains(t, err, "the sandbox was paused or ended")
	require.Contains(t, fault.HintOf(err), "roost info")
}
