package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/internal/control/agenttest"
)

const nobody = "aaaaaaaaaaaaaaaaaaaa"

func TestHealthAndAuthentication(t *testing.T) {
	e := newEnv(t)
	resp, err := e.http.Get(e.url + "/health")
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, 200, resp.StatusCode)

	for name, h := range map[string][2]string{
		"none": {"X-Nothing", ""}, "empty": {"X-API-Key", ""}, "wrong": {"X-API-Key", "roost_" + strings.Repeat("0", 40)},
		"basic": {"Authorization", "Basic " + e.key}, "bare": {"Authorization", e.key},
	} {
		for _, path := range []string{"/v1/sandboxes", "/v1/host", "/nowhere", "/v1/sandboxes/" + nobody + "/exec/stream", "/health/../v1/host"} {
			req, err := http.NewRequestWithContext(t.Context(), "GET", e.url+path, nil)
			require.NoError(t, err)
			req.Header.Set(h[0], h[1])
			resp, err := e.http.Do(req)
			require.NoError(t, err)
			require.NoError(t, resp.Body.Close())
			require.Equal(t, 401, resp.StatusCode, "%s %s", name, path)
		}
	}
	status, _ := e.do("GET", "/v1/sandboxes", "")
	require.Equal(t, 200, status, "Bearer")
}

func TestSandboxRoutes(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	made, err := e.client.CreateSandboxWithResponse(ctx, nil, v1.CreateSandbox{Vcpus: ptr(2), Metadata: &map[string]string{"a": "b"},
		Env: &map[string]string{"PASSWORD": "hunter2hunter2"}})
	require.NoError(t, err)
	sb := made.JSON201
	require.NotNil(t, sb, "%s", made.Body)
	require.Equal(t, v1.Running, sb.State)
	require.Equal(t, 5120, sb.DiskSizeMb)
	require.Equal(t, 300, sb.IdleTimeoutS)
	require.Equal(t, "emulated", sb.Isolation)
	require.Equal(t, map[string]string{"a": "b"}, *sb.Metadata)
	require.Equal(t, []v1.Phase{{Name: "restore", Ms: 1.5}}, *sb.Phases)

	got, err := e.client.GetSandboxWithResponse(ctx, sb.Id)
	require.NoError(t, err)
	require.Equal(t, sb.Id, got.JSON200.Id)
	require.EqualValues(t, 8192, *got.JSON200.MemoryUsedBytes)
	list, err := e.client.ListSandboxesWithResponse(ctx, &v1.ListSandboxesParams{State: ptr(v1.Running)})
	require.NoError(t, err)
	require.Len(t, list.JSON200.Sandboxes, 1)
	require.Nil(t, list.JSON200.NextCursor)

	for _, f := range []func() (int, error){
		func() (int, error) {
			r, err := e.client.PauseSandboxWithResponse(ctx, sb.Id, v1.Pause{})
			return r.StatusCode(), err
		},
		func() (int, error) {
			r, err := e.client.PauseSandboxWithResponse(ctx, sb.Id, v1.Pause{})
			return r.StatusCode(), err
		},
		func() (int, error) {
			r, err := e.client.SetSandboxTimeoutWithResponse(ctx, sb.Id, v1.Timeout{IdleTimeoutS: 7})
			return r.StatusCode(), err
		},
		func() (int, error) {
			r, err := e.client.ResumeSandboxWithResponse(ctx, sb.Id, v1.Resume{})
			return r.StatusCode(), err
		},
	} {
		status, err := f()
		require.NoError(t, err)
		require.Equal(t, 200, status)
	}
	got, err = e.client.GetSandboxWithResponse(ctx, sb.Id)
	require.NoError(t, err)
	require.Equal(t, 7, got.JSON200.IdleTimeoutS)

	status, text := e.do("GET", "/v1/sandboxes/"+sb.Id+"/logs", "")
	require.Equal(t, 200, status)
	require.Equal(t, "Linux version 6.1\n", text)
	_, text = e.do("GET", "/v1/sandboxes/"+sb.Id+"/logs?tail_bytes=4", "")
	require.Equal(t, "6.1\n", text)

	for range 2 {
		gone, err := e.client.DeleteSandboxWithResponse(ctx, sb.Id)
		require.NoError(t, err)
		require.Equal(t, 204, gone.StatusCode())
	}
	got, err = e.client.GetSandboxWithResponse(ctx, sb.Id)
	require.NoError(t, err)
	require.Equal(t, v1.Deleted, got.JSON200.State)
	require.Equal(t, "deleted on request", *got.JSON200.Reason)
	require.NotContains(t, e.log.String(), "hunter2")
	require.NotContains(t, e.log.String(), e.key)
}

func TestHostTemplatesAndKeys(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	h, err := e.client.GetHostWithResponse(ctx)
	require.NoError(t, err)
	require.Equal(t, "box", h.JSON200.Hostname)
	require.Equal(t, v1.Warn, h.JSON200.Checks[0].Status)
	hint := "make runsc"
	require.Equal(t, []v1.Runtime{
		{Name: "microvm", Isolation: "emulated", Available: true, Reason: "no KVM"},
		{Name: "gvisor", Isolation: "sentry", Reason: "runsc is not there", Hint: &hint},
	}, h.JSON200.Runtimes)
	list, err := e.client.ListTemplatesWithResponse(ctx)
	require.NoError(t, err)
	require.Len(t, list.JSON200.Templates, 2)
	one, err := e.client.GetTemplateWithResponse(ctx, "base")
	require.NoError(t, err)
	require.Equal(t, 512, (*one.JSON200.WarmSizes)[0].MemoryMb)
	none, err := e.client.GetTemplateWithResponse(ctx, "nope")
	require.NoError(t, err)
	require.Equal(t, 404, none.StatusCode())
	require.Equal(t, "known templates: base, other", *none.JSONDefault.Error.Hint)

	made, err := e.client.CreateAPIKeyWithResponse(ctx, v1.CreateAPIKeyJSONRequestBody{Name: "ci"})
	require.NoError(t, err)
	require.Regexp(t, `^roost_[0-9a-f]{40}$`, made.JSON201.Secret)
	keys, err := e.client.ListAPIKeysWithResponse(ctx)
	require.NoError(t, err)
	require.Len(t, keys.JSON200.ApiKeys, 2)
	require.NotContains(t, string(keys.Body), made.JSON201.Secret[12:])
	first := keys.JSON200.ApiKeys[0]
	require.NotNil(t, first.LastUsedAt)
	e.key = made.JSON201.Secret
	gone, err := e.client.DeleteAPIKeyWithResponse(ctx, first.Id)
	require.NoError(t, err)
	require.Equal(t, 204, gone.StatusCode())
	gone, err = e.client.DeleteAPIKeyWithResponse(ctx, made.JSON201.ApiKey.Id)
	require.NoError(t, err)
	require.Equal(t, 409, gone.StatusCode())
}

func TestBadInput(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	sb := "/v1/sandboxes/" + id
	big := `{"metadata":{"a":"` + strings.Repeat("x", 1<<20) + `"}}`
	tests := []struct {
		method, path, body string
		status             int
		code, text         string
	}{
		{"POST", "/v1/sandboxes", `{"template":"nope"}`, 404, "not_found", "template nope"},
		{"POST", "/v1/sandboxes", `{"vcpus":99}`, 400, "invalid_argument", "vcpus is 99"},
		{"POST", "/v1/sandboxes", `{"memory_mb":1}`, 400, "invalid_argument", "memory_mb is 1"},
		{"POST", "/v1/sandboxes", `{"disk_size_mb":1}`, 400, "invalid_argument", "disk_size_mb is 1"},
		{"POST", "/v1/sandboxes", `{"vcpus":"two"}`, 400, "invalid_argument", "vcpus"},
		{"POST", "/v1/sandboxes", `{"vcpus":`, 400, "invalid_argument", "JSON"},
		{"POST", "/v1/sandboxes", ``, 400, "invalid_argument", "JSON"},
		{"POST", "/v1/sandboxes", big, 400, "invalid_argument", "more than 1048576 bytes"},
		{"GET", "/v1/sandboxes?limit=0", "", 400, "invalid_argument", "limit is 0"},
		{"GET", "/v1/sandboxes?limit=x", "", 400, "invalid_argument", "limit"},
		{"GET", "/v1/sandboxes?state=nope", "", 400, "invalid_argument", "state is"},
		{"GET", "/v1/sandboxes?cursor=!!", "", 400, "invalid_argument", "cursor is"},
		{"GET", "/v1/sandboxes/" + nobody, "", 404, "not_found", nobody},
		{"GET", "/v1/sandboxes/UPPER", "", 404, "not_found", "UPPER"},
		{"GET", "/v1/sandboxes/..%2f..%2fetc", "", 404, "not_found", ""},
		{"DELETE", "/v1/sandboxes/" + nobody, "", 404, "not_found", nobody},
		{"POST", "/v1/sandboxes/" + nobody + "/pause", "", 404, "not_found", nobody},
		{"POST", "/v1/sandboxes/" + nobody + "/resume", "", 404, "not_found", nobody},
		{"POST", sb + "/timeout", `{"idle_timeout_s":-1}`, 400, "invalid_argument", "idle_timeout_s is -1"},
		{"GET", sb + "/logs?tail_bytes=0", "", 400, "invalid_argument", "tail_bytes is 0"},
		{"GET", sb + "/logs?tail_bytes=9999999", "", 400, "invalid_argument", "tail_bytes is 9999999"},
		{"POST", sb + "/exec", `{"cmd":[]}`, 400, "invalid_argument", "cmd is empty"},
		{"POST", sb + "/exec", `{"cmd":["a\u0000"]}`, 400, "invalid_argument", "zero byte"},
		{"POST", sb + "/exec", `{"cmd":["true"],"timeout_s":-1}`, 400, "invalid_argument", "timeout_s is -1"},
		{"POST", sb + "/exec", `{"cmd":["true"],"env":{"A B":"x"}}`, 400, "invalid_argument", "env is"},
		{"POST", sb + "/exec", `{"cmd":["true"],"user":"a:b"}`, 400, "invalid_argument", "user"},
		{"POST", sb + "/exec", `{"cmd":["/no/such/program"]}`, 400, "invalid_argument", "/no/such/program"},
		{"POST", "/v1/sandboxes/" + nobody + "/exec", `{"cmd":["true"]}`, 404, "not_found", nobody},
		{"GET", sb + "/exec/stream", "", 426, "", ""},
		{"GET", "/v1/sandboxes/" + nobody + "/exec/stream", "", 404, "not_found", nobody},
		{"GET", sb + "/files", "", 400, "invalid_argument", "path"},
		{"GET", sb + "/files?path=", "", 400, "invalid_argument", "path"},
		{"GET", sb + "/files?path=%00", "", 400, "invalid_argument", "path is"},
		{"GET", sb + "/files?path=/missing", "", 404, "not_found", "no such file"},
		{"PUT", sb + "/files?path=/a&mode=999", "x", 400, "invalid_argument", "mode is"},
		{"PUT", sb + "/files?path=/full", "x", 507, "resource_exhausted", "no space left"},
		{"GET", sb + "/files/list?path=/&depth=0", "", 400, "invalid_argument", "depth is 0"},
		{"GET", sb + "/files/list?path=/missing", "", 404, "not_found", "missing"},
		{"GET", sb + "/files/stat?path=/missing", "", 404, "not_found", "/missing does not exist"},
		{"GET", "/v1/sandboxes/" + nobody + "/files?path=/a", "", 404, "not_found", nobody},
		{"GET", "/v1/sandboxes/" + nobody + "/archive?path=/a", "", 404, "not_found", nobody},
		{"POST", "/v1/api-keys", `{"name":""}`, 400, "invalid_argument", "name"},
		{"DELETE", "/v1/api-keys/nope", "", 404, "not_found", "nope"},
		{"GET", "/v1/nowhere", "", 404, "not_found", "not part of this API"},
		{"PATCH", sb, "", 405, "unimplemented", "PATCH"},
	}
	for _, tt := range tests {
		status, body := e.do(tt.method, tt.path, tt.body)
		name := fmt.Sprintf("%s %.80s %.60s → %.300s", tt.method, tt.path, tt.body, body)
		require.Equal(t, tt.status, status, name)
		if tt.code != "" {
			p := e.problem(body)
			require.Equal(t, tt.code, p.Code, name)
			require.Contains(t, p.Message, tt.text, name)
		}
	}
	require.Equal(t, 1, e.agent.Calls("CreateSandbox"), "no side effect")
}

func TestKindsBecomeStatuses(t *testing.T) {
	e := newEnv(t)
	for code, want := range map[connect.Code]int{
		connect.CodeInvalidArgument: 400, connect.CodeUnauthenticated: 401, connect.CodePermissionDenied: 403,
		connect.CodeNotFound: 404, connect.CodeAlreadyExists: 409, connect.CodeFailedPrecondition: 409,
		connect.CodeAborted: 409, connect.CodeResourceExhausted: 429, connect.CodeUnimplemented: 501,
		connect.CodeUnavailable: 503, connect.CodeDeadlineExceeded: 504, connect.CodeInternal: 500, connect.CodeDataLoss: 500,
	} {
		e.agent.Before(func(_ context.Context, m, _ string) error {
			if m != "GetHost" {
				return nil
			}
			err := connect.NewError(code, errors.New("because"))
			err.Meta().Set("Roost-Hint", "do this")
			return err
		})
		status, body := e.do("GET", "/v1/host", "")
		require.Equal(t, want, status, code)
		p := e.problem(body)
		require.Equal(t, code.String(), p.Code)
		require.Contains(t, p.Message, "because")
		require.Equal(t, "do this", *p.Hint)
	}
}

func TestPausedSandboxTakesNoCommands(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	_, err := e.client.PauseSandboxWithResponse(t.Context(), id, v1.Pause{})
	require.NoError(t, err)
	for _, r := range [][3]string{
		{"POST", "/exec", `{"cmd":["true"]}`}, {"GET", "/files?path=/a", ""}, {"PUT", "/files?path=/a", "x"},
		{"GET", "/exec/stream", ""}, {"GET", "/archive?path=/a", ""}, {"DELETE", "/files?path=/a", ""},
	} {
		status, body := e.do(r[0], "/v1/sandboxes/"+id+r[1], r[2])
		require.Equal(t, 409, status, r)
		p := e.problem(body)
		require.Equal(t, "failed_precondition", p.Code)
		require.Equal(t, "sandbox "+id+" is paused", p.Message)
		require.Equal(t, "resume it: roost resume "+id, *p.Hint)
	}
}

// events posts a create that takes lines.
func (e *env) events(body string) (int, []v1.CreateEvent, string) {
	e.Helper()
	status, raw := e.do("POST", "/v1/sandboxes", body, "Accept", "application/x-ndjson, application/json")
	var out []v1.CreateEvent
	if status != 201 {
		return status, nil, raw
	}
	for lines := bufio.NewScanner(strings.NewReader(raw)); lines.Scan(); {
		var ev v1.CreateEvent
		require.NoError(e, json.Unmarshal(lines.Bytes(), &ev), lines.Text())
		out = append(out, ev)
	}
	return status, out, raw
}

func TestCreateWithProgress(t *testing.T) {
	e := newEnv(t)
	_, evs, _ := e.events("{}")
	require.Len(t, evs, 2)
	require.Equal(t, "boot", evs[0].Progress.Step)
	require.Equal(t, v1.Running, evs[1].Sandbox.State)

	status, _, raw := e.events(`{"template":"nope"}`)
	require.Equal(t, 404, status, "before any progress an error has its own status")
	require.Equal(t, "not_found", e.problem(raw).Code)

	e.agent.Before(func(_ context.Context, m, _ string) error {
		if m == "CreateSandbox" {
			panicked := connect.NewError(connect.CodeResourceExhausted, errors.New("disk is full"))
			return panicked
		}
		return nil
	})
	status, evs, raw = e.events("{}")
	if status == 201 { // the progress was out before the error came
		require.Equal(t, "resource_exhausted", evs[len(evs)-1].Error.Code)
	} else {
		require.Equal(t, 507, status, raw)
	}
}

func TestIdempotencyKey(t *testing.T) {
	e := newEnv(t)
	params := &v1.CreateSandboxParams{IdempotencyKey: ptr("abc")}
	a, err := e.client.CreateSandboxWithResponse(t.Context(), params, v1.CreateSandbox{})
	require.NoError(t, err)
	b, err := e.client.CreateSandboxWithResponse(t.Context(), params, v1.CreateSandbox{})
	require.NoError(t, err)
	require.Equal(t, a.JSON201.Id, b.JSON201.Id)
	require.Equal(t, 1, e.agent.Calls("CreateSandbox"))
}

func TestClientGoneMidCreate(t *testing.T) {
	for _, accept := range []string{"application/json", "application/x-ndjson"} {
		t.Run(accept, func(t *testing.T) {
			e := newEnv(t)
			entered, destroyed := make(chan struct{}), make(chan string, 1)
			e.agent.After(hook("CreateSandbox", func(ctx context.Context, _ string) error {
				close(entered)
				<-ctx.Done()
				return ctx.Err()
			}))
			e.agent.Before(hook("DestroySandbox", func(_ context.Context, id string) error {
				destroyed <- id
				return nil
			}))
			ctx, leave := context.WithCancel(t.Context())
			req, err := http.NewRequestWithContext(ctx, "POST", e.url+"/v1/sandboxes", strings.NewReader("{}"))
			require.NoError(t, err)
			req.Header.Set("X-API-Key", e.key)
			req.Header.Set("Accept", accept)
			go func() { <-entered; leave() }()
			resp, err := e.http.Do(req)
			if err == nil {
				<-entered // closing is leaving; a destroy that overtakes its create is the reconciler's
				_ = resp.Body.Close()
			}
			id := <-destroyed
			e.server.Stop() // waits for the handler
			require.Nil(t, e.agent.Sandbox(id))
		})
	}
}

func hook(method string, f func(ctx context.Context, id string) error) agenttest.Hook {
	return func(ctx context.Context, m, id string) error {
		if m == method {
			return f(ctx, id)
		}
		return nil
	}
}

func TestSlowHeadersAreCutOff(t *testing.T) {
	e := newEnv(t)
	conn, err := net.Dial("tcp", strings.TrimPrefix(e.url, "http://"))
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Write([]byte("GET /v1/host HTTP/1.1\r\nHost: a\r\nX-Endless: " + strings.Repeat("x", 200<<10)))
	require.NoError(t, err)
	line, err := bufio.NewReader(conn).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "431", "headers are bounded")
}
