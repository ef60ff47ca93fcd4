package guestproxy

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

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
