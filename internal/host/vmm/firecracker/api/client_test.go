package api_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/vmm/firecracker/api"
	"github.com/roosthq/roost/internal/host/vmm/firecracker/firecrackertest"
)

// types are the client's, by the names that api.json has.
var types = map[string]any{
	"MachineConfig": api.MachineConfig{}, "BootSource": api.BootSource{}, "Drive": api.Drive{}, "DrivePatch": api.DrivePatch{},
	"NetworkInterface": api.NetworkInterface{}, "NetworkInterfacePatch": api.NetworkInterfacePatch{}, "RateLimiter": api.RateLimiter{}, "TokenBucket": api.TokenBucket{},
	"Entropy": api.Entropy{}, "Action": api.Action{}, "VMState": api.VMState{}, "SnapshotCreate": api.SnapshotCreate{},
	"MemoryBackend": api.MemoryBackend{}, "NetworkOverride": api.NetworkOverride{}, "SnapshotLoad": api.SnapshotLoad{},
	"Instance": api.Instance{}, "Version": api.Version{}, "Fault": api.Fault{},
}

// TestFields holds each struct to the table, field by field: names, kinds, and that nothing is left
// out that must be there.
func TestFields(t *testing.T) {
	t.Parallel()
	table := firecrackertest.API()
	require.Len(t, types, len(table.Types))
	for name, v := range types {
		described := table.Types[name]
		have := map[string]bool{}
		for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
			tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			have[tag] = true
			want, known := described[tag]
			require.True(t, known, "%s.%s is not in api.json", name, tag)
			require.Equal(t, want.Type, kindOf(f.Type), "%s.%s", name, tag)
			require.False(t, want.Required && strings.Contains(options, "omitempty"), "%s.%s must not be left out", name, tag)
		}
		for field, f := range described {
			require.True(t, have[field] || !f.Required, "%s.%s is required and the client does not have it", name, field)
		}
	}
}

func kindOf(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "string"
	case reflect.Bool:
		return "boolean"
	case reflect.Int, reflect.Int64:
		return "integer"
	case reflect.Slice:
		return "[]" + kindOf(t.Elem())
	case reflect.Pointer:
		return kindOf(t.Elem())
	default:
		return t.Name()
	}
}

// serve answers every request.
func serve(t *testing.T, h http.HandlerFunc) *api.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	s := &http.Server{Handler: h} //nolint:gosec // its client is the test
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { _ = s.Close() })
	return api.New(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	})
}

// TestCallsAreAsDescribed checks every call of the client: its endpoint is in the table, and its body
// is of the endpoint's type.
func TestCallsAreAsDescribed(t *testing.T) {
	t.Parallel()
	table, seen := firecrackertest.API(), map[string]bool{}
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		e, _, found := table.Find(r.Method, r.URL.Path)
		if !found {
			t.Errorf("%s %s is not in api.json", r.Method, r.URL.Path)
		}
		seen[e.Method+" "+e.Path] = true
		body, err := io.ReadAll(r.Body)
		if err == nil && e.Body != "" {
			err = table.Check(e.Body, body)
		}
		if err != nil || r.ContentLength != int64(len(body)) {
			t.Errorf("%s %s: %v, length %d", r.Method, r.URL.Path, err, r.ContentLength)
		}
		if e.Answer == "" {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		_, _ = w.Write([]byte(`{"id":"a","state":"Paused","vmm_version":"1","app_name":"b","firecracker_version":"1.2.3"}`))
	})
	ctx := t.Context()
	bucket := &api.TokenBucket{Size: 1, RefillMS: 2, Burst: 3}
	limiter := &api.RateLimiter{Bandwidth: bucket, Ops: bucket}
	in, err := c.Instance(ctx)
	require.NoError(t, err)
	require.Equal(t, api.Instance{ID: "a", State: api.Paused, Version: "1", App: "b"}, in)
	v, err := c.Version(ctx)
	require.NoError(t, err)
	require.Equal(t, "1.2.3", v)
	require.NoError(t, c.SetMachine(ctx, api.MachineConfig{VCPUs: 1, MemoryMB: 64, CPUTemplate: "T2"}))
	require.NoError(t, c.SetBootSource(ctx, api.BootSource{Kernel: "/k", Initrd: "/i", Args: "a"}))
	require.NoError(t, c.AddDrive(ctx, api.Drive{ID: "d", Path: "/d", Cache: api.CacheWriteback, Engine: api.EngineSync, RateLimiter: limiter}))
	require.NoError(t, c.AddNetworkInterface(ctx, api.NetworkInterface{ID: "n", Tap: "t", MAC: "m", RxRateLimiter: limiter, TxRateLimiter: limiter}))
	require.NoError(t, c.SetEntropy(ctx, api.Entropy{RateLimiter: limiter}))
	require.NoError(t, c.Start(ctx))
	require.NoError(t, c.Pause(ctx))
	require.NoError(t, c.Resume(ctx))
	require.NoError(t, c.PatchDrive(ctx, api.DrivePatch{ID: "d", Path: "/d", RateLimiter: limiter}))
	require.NoError(t, c.PatchNetworkInterface(ctx, api.NetworkInterfacePatch{ID: "n", RxRateLimiter: limiter, TxRateLimiter: limiter}))
	require.NoError(t, c.CreateSnapshot(ctx, api.SnapshotCreate{Type: api.SnapshotDiff, State: "/s", Memory: "/m"}))
	require.NoError(t, c.LoadSnapshot(ctx, api.SnapshotLoad{
		State: "/s", Memory: api.MemoryBackend{Type: api.MemoryUffd, Path: "/p"}, NetworkOverrides: []api.NetworkOverride{{ID: "n", Tap: "t"}},
	}))
	require.Len(t, seen, len(table.Endpoints), "a call for each endpoint of the table")
}

func TestErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status int
		body   string
		kind   fault.Kind
		says   string
	}{
		{400, `{"fault_message":"not now"}`, fault.FailedPrecondition, "not now"},
		{400, "{ \"error\": \"with a\nline\" }", fault.FailedPrecondition, "status 400"},
		{400, `{"fault_message":"write: No space left on device (os error 28)"}`, fault.ResourceExhausted, "no space left"},
		{500, `{"fault_message":"broken"}`, fault.Internal, "broken"},
		{200, `nothing of the kind`, fault.Internal, "not as described"},
	} {
		client := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.body))
		})
		_, err := client.Instance(t.Context())
		require.True(t, fault.Is(err, c.kind), "%v", err)
		require.ErrorContains(t, err, c.says)
	}
	nobody := api.New(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", filepath.Join(t.TempDir(), "missing"))
	})
	require.True(t, fault.Is(nobody.Pause(t.Context()), fault.Unavailable))
	ctx, cancel := context.WithCancel(t.Context())
	slow := serve(t, func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() })
	require.True(t, fault.Is(slow.Pause(ctx), fault.Canceled))
}
