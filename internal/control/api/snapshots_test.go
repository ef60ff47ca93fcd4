package api_test

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	v1 "github.com/roosthq/roost/api/gen/v1"
)

func TestSnapshotRoutes(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	id := e.create()
	made, err := e.client.CreateSnapshotWithResponse(ctx, v1.CreateSnapshot{SandboxId: id, Name: ptr("s")})
	require.NoError(t, err)
	require.Equal(t, 201, made.StatusCode(), "%s", made.Body)
	snap := made.JSON201
	require.Equal(t, "s", snap.Name)
	require.Equal(t, v1.Snapshot, snap.Type)
	require.Equal(t, "ready", *snap.State)
	require.InDelta(t, 25, *snap.FrozenMs, 0.001)
	require.Equal(t, []v1.Phase{{Name: "freeze", Ms: 1}}, *snap.Phases)
	require.Equal(t, []int{1, 512, 5120}, []int{*snap.Vcpus, *snap.MemoryMb, *snap.DiskSizeMb})
	require.EqualValues(t, []int64{9 << 20, 2 << 20}, []int64{snap.SizeBytes, *snap.OwnBytes})
	require.Equal(t, []string{id, "base", "microvm", "emulated", "sha256:b"},
		[]string{*snap.SourceSandboxId, *snap.Parent, *snap.Runtime, *snap.Isolation, snap.Digest})
	require.True(t, snap.Deletable)
	require.False(t, *snap.DiskOnly)
	require.Zero(t, *snap.Children)
	require.Nil(t, snap.WarmSizes)

	other := e.create()
	unnamed, err := e.client.CreateSnapshotWithResponse(ctx, v1.CreateSnapshot{SandboxId: other})
	require.NoError(t, err)
	require.Equal(t, unnamed.JSON201.Id, unnamed.JSON201.Name)
	list, err := e.client.ListSnapshotsWithResponse(ctx, nil)
	require.NoError(t, err)
	require.Len(t, list.JSON200.Templates, 2)
	require.Equal(t, unnamed.JSON201.Id, list.JSON200.Templates[0].Id, "newest first")
	list, err = e.client.ListSnapshotsWithResponse(ctx, &v1.ListSnapshotsParams{SandboxId: &id})
	require.NoError(t, err)
	require.Len(t, list.JSON200.Templates, 1)
	all, err := e.client.ListTemplatesWithResponse(ctx)
	require.NoError(t, err)
	require.Len(t, all.JSON200.Templates, 4, "one table")

	child, err := e.client.CreateSandboxWithResponse(ctx, nil, v1.CreateSandbox{Template: ptr("s")})
	require.NoError(t, err)
	require.Equal(t, "s", child.JSON201.Template)
	for _, name := range []string{"s", snap.Id} {
		got, err := e.client.GetSnapshotWithResponse(ctx, name)
		require.NoError(t, err)
		require.Equal(t, snap.Id, got.JSON200.Id)
		require.Equal(t, 1, *got.JSON200.Children)
		same, err := e.client.GetTemplateWithResponse(ctx, name)
		require.NoError(t, err)
		require.Equal(t, got.JSON200, same.JSON200)
	}
	for range 2 {
		gone, err := e.client.DeleteSnapshotWithResponse(ctx, "s")
		require.NoError(t, err)
		require.Equal(t, 204, gone.StatusCode())
	}
	gone, err := e.client.DeleteTemplateWithResponse(ctx, unnamed.JSON201.Id)
	require.NoError(t, err)
	require.Equal(t, 204, gone.StatusCode())
	got, err := e.client.GetSandboxWithResponse(ctx, child.JSON201.Id)
	require.NoError(t, err)
	require.Equal(t, v1.Running, got.JSON200.State, "what came from it goes on")
}

func TestForkRoute(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	made, err := e.client.ForkSandboxWithResponse(t.Context(), id, v1.Fork{Count: ptr(3), IdleTimeoutS: ptr(0),
		Metadata: &map[string]string{"a": "b"}})
	require.NoError(t, err)
	require.Equal(t, 201, made.StatusCode(), "%s", made.Body)
	require.Len(t, made.JSON201.Sandboxes, 3)
	require.InDelta(t, 25, made.JSON201.FrozenMs, 0.001)
	require.Equal(t, []v1.Phase{{Name: "capture", Ms: 2}}, *made.JSON201.Phases)
	for _, sb := range made.JSON201.Sandboxes {
		require.Equal(t, id, *sb.ForkedFrom)
		require.Equal(t, v1.Running, sb.State)
		require.Zero(t, sb.IdleTimeoutS)
		require.Equal(t, map[string]string{"a": "b"}, *sb.Metadata)
	}
}

// Bodies that may be left out, with and without the header that says what they are.
func TestOptionalBodies(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	for _, header := range [][]string{nil, {"Content-Type", "application/json"}} {
		for _, call := range []struct {
			path   string
			status int
		}{{"/pause", 200}, {"/resume", 200}, {"/fork", 201}} {
			status, body := e.do("POST", "/v1/sandboxes/"+id+call.path, "", header...)
			require.Equal(t, call.status, status, "%s %s", call.path, body)
		}
	}
	for _, body := range []string{"{}", "null", " "} {
		status, text := e.do("POST", "/v1/sandboxes/"+id+"/pause", body, "Content-Type", "application/json")
		require.Equal(t, 200, status, "%q %s", body, text)
	}
	status, text := e.do("POST", "/v1/sandboxes/"+id+"/resume", `{"cold":true}`)
	require.Equal(t, 200, status, text)
	require.Contains(t, text, "booted from its disk")
	status, text = e.do("POST", "/v1/sandboxes/"+id+"/pause", `{"disk_only":true}`)
	require.Equal(t, 200, status, text)
	require.Contains(t, text, "paused without memory")
}

func TestLostSandboxes(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	e.agent.Change(id, func(sb *hostv1.Sandbox) { sb.State = hostv1.SandboxState_SANDBOX_STATE_LOST })
	_, _ = e.do("GET", "/v1/sandboxes/"+id, "")
	status, text := e.do("GET", "/v1/sandboxes?state=lost", "")
	require.Equal(t, 200, status)
	require.Contains(t, text, id)
	status, text = e.do("POST", "/v1/sandboxes/"+id+"/exec", `{"cmd":["true"]}`)
	require.Equal(t, 409, status)
	require.Contains(t, *e.problem(text).Hint, "roost resume --cold "+id)
	status, text = e.do("POST", "/v1/sandboxes/"+id+"/resume", `{"cold":true}`)
	require.Equal(t, 200, status, text)
}

func TestTemplateRoutes(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	id := e.create()
	made, err := e.client.CreateTemplateWithResponse(ctx, v1.CreateTemplate{Name: "mine", From: id})
	require.NoError(t, err)
	require.Equal(t, 201, made.StatusCode(), "%s", made.Body)
	require.Equal(t, v1.Base, made.JSON201.Type)
	require.False(t, *made.JSON201.DiskOnly)
	require.True(t, made.JSON201.Deletable)
	require.Nil(t, made.JSON201.OwnBytes)
	sb, err := e.client.CreateSandboxWithResponse(ctx, nil, v1.CreateSandbox{Template: ptr("mine")})
	require.NoError(t, err)
	require.Equal(t, "mine", sb.JSON201.Template)

	status, raw := e.do("POST", "/v1/templates", `{"name":"bare","from":"`+id+`","disk_only":true}`, "Accept", "application/x-ndjson")
	require.Equal(t, 201, status, raw)
	var evs []v1.TemplateEvent
	for lines := bufio.NewScanner(strings.NewReader(raw)); lines.Scan(); {
		var ev v1.TemplateEvent
		require.NoError(t, json.Unmarshal(lines.Bytes(), &ev), lines.Text())
		evs = append(evs, ev)
	}
	require.Len(t, evs, 2)
	require.Equal(t, "export", evs[0].Progress.Step)
	require.Equal(t, "bare", evs[1].Template.Name)
	require.True(t, *evs[1].Template.DiskOnly)
	status, raw = e.do("POST", "/v1/templates", `{"name":"bare","from":"`+id+`"}`, "Accept", "application/x-ndjson")
	require.Equal(t, 409, status, "before any progress an error has its own status")
	require.Equal(t, "already_exists", e.problem(raw).Code)

	for range 2 {
		gone, err := e.client.DeleteTemplateWithResponse(ctx, "mine")
		require.NoError(t, err)
		require.Equal(t, 204, gone.StatusCode())
	}
	base, err := e.client.GetTemplateWithResponse(ctx, "base")
	require.NoError(t, err)
	require.False(t, base.JSON200.Deletable)
	require.Equal(t, 2, *base.JSON200.Children, "a sandbox and a template")
	for _, path := range []string{"/v1/templates/base", "/v1/snapshots/base", "/v1/snapshots/bare"} {
		status, raw := e.do("DELETE", path, "")
		require.Equal(t, 409, status, path)
		require.Equal(t, "failed_precondition", e.problem(raw).Code)
	}
	require.NotNil(t, e.agent.Template("base"))
}

func TestLeakRoutes(t *testing.T) {
	e := newEnv(t)
	_, raw := e.do("GET", "/v1/host/leaks", "")
	require.Equal(t, `{"leaks":[]}`, strings.TrimSpace(raw), "never null")
	e.agent.PutLeak(&hostv1.Leak{Kind: "process", Name: "123", Detail: "qemu", Bytes: 9})
	e.agent.PutSnapshot(&hostv1.Snapshot{Id: "stray"})
	found, err := e.client.ListLeaksWithResponse(t.Context())
	require.NoError(t, err)
	require.Equal(t, v1.Leak{Kind: "process", Name: "123", Detail: "qemu", Bytes: ptr(int64(9))}, found.JSON200.Leaks[0])
	require.Equal(t, "stray", found.JSON200.Leaks[1].Name)
	removed, err := e.client.RemoveLeaksWithResponse(t.Context(), nil)
	require.NoError(t, err)
	require.True(t, removed.JSON200.Leaks[0].Removed)
	require.False(t, removed.JSON200.Leaks[1].Removed, "it holds data")
	removed, err = e.client.RemoveLeaksWithResponse(t.Context(), &v1.RemoveLeaksParams{WithData: ptr(true)})
	require.NoError(t, err)
	require.Len(t, removed.JSON200.Leaks, 1)
	require.True(t, removed.JSON200.Leaks[0].Removed)
	found, err = e.client.ListLeaksWithResponse(t.Context())
	require.NoError(t, err)
	require.Empty(t, found.JSON200.Leaks)
}

func TestBadInputOfSnapshots(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	status, raw := e.do("POST", "/v1/snapshots", `{"sandbox_id":"`+id+`","name":"s"}`)
	require.Equal(t, 201, status, raw)
	snap := func(rest string) string { return `{"sandbox_id":"` + id + `"` + rest + `}` }
	tests := []struct {
		method, path, body string
		status             int
		code, text         string
	}{
		{"POST", "/v1/snapshots", ``, 400, "invalid_argument", "JSON"},
		{"POST", "/v1/snapshots", `{}`, 404, "not_found", "sandbox"},
		{"POST", "/v1/snapshots", `{"sandbox_id":"` + nobody + `"}`, 404, "not_found", nobody},
		{"POST", "/v1/snapshots", `{"sandbox_id":7}`, 400, "invalid_argument", "sandbox_id"},
		{"POST", "/v1/snapshots", snap(`,"name":"UP"`), 400, "invalid_argument", "name is"},
		{"POST", "/v1/snapshots", snap(`,"name":"a/b"`), 400, "invalid_argument", "name is"},
		{"POST", "/v1/snapshots", snap(`,"name":"` + strings.Repeat("x", 64) + `"`), 400, "invalid_argument", "name is"},
		{"POST", "/v1/snapshots", snap(`,"name":"s"`), 409, "already_exists", "s already"},
		{"POST", "/v1/snapshots", snap(`,"name":"base"`), 409, "already_exists", "base already"},
		{"GET", "/v1/snapshots/nope", "", 404, "not_found", "nope"},
		{"GET", "/v1/snapshots/base", "", 404, "not_found", "base"},
		{"GET", "/v1/templates/..%2f..%2fetc", "", 404, "not_found", ""},
		{"DELETE", "/v1/snapshots/base", "", 409, "failed_precondition", "it is a template"},
		{"PUT", "/v1/snapshots/s", "", 405, "unimplemented", "PUT"},
		{"POST", "/v1/sandboxes/" + nobody + "/fork", `{}`, 404, "not_found", nobody},
		{"POST", "/v1/sandboxes/" + id + "/fork", `{"count":0}`, 400, "invalid_argument", "count is 0"},
		{"POST", "/v1/sandboxes/" + id + "/fork", `{"count":65}`, 400, "invalid_argument", "count is 65"},
		{"POST", "/v1/sandboxes/" + id + "/fork", `{"count":"x"}`, 400, "invalid_argument", "count"},
		{"POST", "/v1/sandboxes/" + id + "/fork", `{"idle_timeout_s":-1}`, 400, "invalid_argument", "idle_timeout_s is -1"},
		{"POST", "/v1/sandboxes/" + id + "/fork", `{"env":{"A B":""}}`, 400, "invalid_argument", "env is"},
		{"POST", "/v1/sandboxes/" + id + "/pause", `{"disk_only":"x"}`, 400, "invalid_argument", "disk_only"},
		{"POST", "/v1/sandboxes/" + id + "/pause", `{`, 400, "invalid_argument", "JSON"},
		{"POST", "/v1/sandboxes/" + id + "/resume", `[]`, 400, "invalid_argument", "JSON"},
		{"POST", "/v1/templates", ``, 400, "invalid_argument", "JSON"},
		{"POST", "/v1/templates", `{"from":"` + id + `"}`, 400, "invalid_argument", "name is"},
		{"POST", "/v1/templates", `{"name":"x"}`, 404, "not_found", "sandbox or snapshot"},
		{"POST", "/v1/templates", `{"name":"x","from":"nope"}`, 404, "not_found", "nope"},
		{"POST", "/v1/templates", `{"name":"x","from":"base"}`, 400, "invalid_argument", "template already"},
		{"POST", "/v1/templates", `{"name":"s","from":"s"}`, 409, "already_exists", "s already"},
		{"DELETE", "/v1/templates/base", "", 409, "failed_precondition", "the host builds it"},
		{"POST", "/v1/sandboxes", `{"template":"s","vcpus":4}`, 400, "invalid_argument", "snapshot s has 1"},
		{"POST", "/v1/sandboxes", `{"template":"s","disk_size_mb":9999}`, 400, "invalid_argument", "cannot grow"},
		{"POST", "/v1/sandboxes", `{"vcpus":0}`, 400, "invalid_argument", "vcpus is 0"},
		{"POST", "/v1/sandboxes", `{"disk_size_mb":0}`, 400, "invalid_argument", "disk_size_mb is 0"},
		{"POST", "/v1/sandboxes", `{"idle_timeout_s":-1}`, 400, "invalid_argument", "idle_timeout_s is -1"},
		{"POST", "/v1/host/leaks", "", 405, "unimplemented", "POST"},
	}
	for _, tt := range tests {
		status, body := e.do(tt.method, tt.path, tt.body)
		name := tt.method + " " + tt.path + " " + tt.body + " → " + body
		require.Equal(t, tt.status, status, name)
		p := e.problem(body)
		require.Equal(t, tt.code, p.Code, name)
		require.Contains(t, p.Message, tt.text, name)
	}
	require.Equal(t, 1, e.agent.Calls("CreateSnapshot"), "no side effect")
	require.Zero(t, e.agent.Calls("ForkSandbox"))
	require.Zero(t, e.agent.Calls("CreateTemplate"))
	require.Zero(t, e.agent.Calls("DeleteTemplate"))
}

// The stream of a template ends in silence for a client that left, and the template stands.
func TestClientGoneMidTemplateStream(t *testing.T) {
	e := newEnv(t)
	id := e.create()
	ctx, leave := context.WithCancel(t.Context())
	open := make(chan struct{})
	e.agent.Before(hook("CreateTemplate", func(context.Context, string) error { <-open; return nil }))
	req, err := http.NewRequestWithContext(ctx, "POST", e.url+"/v1/templates", strings.NewReader(`{"name":"mine","from":"`+id+`"}`))
	require.NoError(t, err)
	req.Header.Set("X-API-Key", e.key)
	req.Header.Set("Accept", "application/x-ndjson")
	resp, err := e.http.Do(req)
	require.NoError(t, err)
	line, err := bufio.NewReader(resp.Body).ReadString('\n')
	require.NoError(t, err)
	require.Contains(t, line, "export")
	leave()
	_ = resp.Body.Close()
	close(open)
	require.Eventually(t, func() bool {
		got, err := e.client.GetTemplateWithResponse(t.Context(), "mine")
		return err == nil && got.JSON200 != nil && *got.JSON200.State == "ready"
	}, time.Minute, 5*time.Millisecond)
}
