package sandbox

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/sandbox/sandboxtest"
)

// spaceMB is the size of the disk that a host under test believes to have.
const spaceMB = 1000

// host is a manager over a host under test.
type host struct {
	*sandboxtest.Host
	t *testing.T
	m *Manager
	// later is how far the manager's clock is ahead.
	later atomic.Int64
	// taken is how many MiB of spaceMB are taken on its disk.
	taken atomic.Int64
	// runtimes are those that the next agent has, and absent says why not others; nil is all.
	runtimes []runtime.Runtime
	absent   map[string]error
}

// onEach runs a test on a host of each kind.
func onEach(t *testing.T, test func(t *testing.T, h *host)) {
	t.Helper()
	t.Parallel()
	for _, kind := range []sandboxtest.Kind{sandboxtest.VM, sandboxtest.Sentry} {
		t.Run(kind.Name, func(t *testing.T) {
			t.Parallel()
			test(t, newHost(t, kind))
		})
	}
}

func newHost(t *testing.T, kinds ...sandboxtest.Kind) *host {
	t.Helper()
	h := &host{Host: sandboxtest.New(t, kinds...), t: t}
	h.start()
	t.Cleanup(func() { h.m.Stop() })
	return h
}

func (h *host) start() {
	h.t.Helper()
	runtimes := h.runtimes
	if runtimes == nil {
		runtimes = h.All()
	}
	h.m = New(Config{
		Data: h.Data, Runtimes: runtimes, Absent: h.absent, Network: h.Network, Images: h.Images, UIDs: h.UIDs,
		GuestPath: os.Args[0], GuestDigest: "guest", Logger: h.Log,
		Clock:      func() time.Time { return time.Now().Add(time.Duration(h.later.Load())) },
		DiskLimits: DiskLimits{Warn: 80, Full: 95, Resume: 90, Least: 1 << 20, Most: 1 << 20},
		SpaceOf: func(string) (Space, error) {
			return Space{Total: spaceMB << 20, Free: (spaceMB - h.taken.Load()) << 20}, nil
		},
	})
	require.NoError(h.t, h.m.Start(h.t.Context()))
}

// stop is the end of an agent; restart begins another.
func (h *host) stop() {
	h.m.Stop()
	h.Network.Stop()
}

func (h *host) restart() {
	h.t.Helper()
	h.stop()
	h.Connect()
	h.start()
}

// id makes a sandbox id out of a letter.
func id(letter string) string {
	out := ""
	for range 20 {
		out += letter
	}
	return out
}

func request(name string) CreateRequest {
	return CreateRequest{ID: name, Template: sandboxtest.Template}
}

func (h *host) create(name string) View {
	h.t.Helper()
	v, err := h.m.Create(h.t.Context(), Operation{ID: "create-" + name}, request(name), nil)
	require.NoError(h.t, err)
	require.Equal(h.t, Running, v.State)
	return v
}

func (h *host) pause(name string) View {
	h.t.Helper()
	res, err := h.m.Pause(h.t.Context(), Operation{}, name, PauseOptions{Reason: "test"})
	require.NoError(h.t, err)
	require.Equal(h.t, Paused, res.State)
	return res.View
}

func (h *host) resume(name string) View {
	h.t.Helper()
	v, err := h.m.Resume(h.t.Context(), Operation{}, name, ResumeOptions{})
	require.NoError(h.t, err)
	require.Equal(h.t, Running, v.State)
	return v
}

func (h *host) destroy(name string) {
	h.t.Helper()
	require.NoError(h.t, h.m.Destroy(h.t.Context(), Operation{}, name))
}

func (h *host) sandbox(name string) *Sandbox {
	h.t.Helper()
	s, err := h.m.lookup(name)
	require.NoError(h.t, err)
	return s
}

func (h *host) state(name string) State { return h.sandbox(name).journal().State }

func (h *host) uid(name string) int { return h.sandbox(name).journal().UID }

// get asks a sandbox's guest.
func (h *host) get(name, path string) (string, error) {
	g, err := h.m.Guest(name, "reach")
	if err != nil {
		return "", err
	}
	defer g.Release()
	req, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, "http://guest"+path, nil)
	if err != nil {
		return "", err
	}
	resp, err := g.Transport.RoundTrip(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return string(raw), err
}

// answers proves that the sandbox runs, its user processes too.
func (h *host) answers(name string) {
	h.t.Helper()
	_, err := h.get(name, "/notes")
	require.NoError(h.t, err)
	require.False(h.t, h.Runtime.Memory(h.uid(name)).Frozen)
}

// empty proves that nothing is left of any sandbox.
func (h *host) empty() {
	h.t.Helper()
	require.Empty(h.t, h.Slots())
	require.Empty(h.t, h.Runtime.Running())
	require.Empty(h.t, h.m.List())
	require.Empty(h.t, h.files("sandboxes/[a-z]*"))
	require.Empty(h.t, h.files("sandboxes/.trash/*"))
	require.Empty(h.t, h.files("images/stage/*"))
}

func (h *host) files(pattern string) []string {
	h.t.Helper()
	found, err := filepath.Glob(filepath.Join(string(h.Data), pattern))
	require.NoError(h.t, err)
	return found
}

// unwritable makes a sandbox's journal impossible to write, as a full disk does, until undone.
func (h *host) unwritable(name string) (undo func()) {
	h.t.Helper()
	blocker := h.Data.Sandbox(name).Journal() + ".tmp"
	require.NoError(h.t, os.Mkdir(blocker, 0o700))
	// Not empty, so that the failed write's cleanup does not remove it.
	require.NoError(h.t, os.WriteFile(filepath.Join(blocker, "x"), nil, 0o600))
	return func() { require.NoError(h.t, os.RemoveAll(blocker)) }
}

// arrival runs f at a step and tells that it was reached; then it waits for the context's end
// or for leave.
func arrival() (step func(context.Context) error, arrived chan struct{}, leave chan struct{}) {
	arrived, leave = make(chan struct{}), make(chan struct{})
	return func(ctx context.Context) error {
		select {
		case <-arrived:
			return nil // only the first time
		default:
		}
		close(arrived)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-leave:
			return nil
		}
	}, arrived, leave
}

var _ runtime.Runtime = (*sandboxtest.Runtime)(nil)

// wait waits for what must come, but not for ever.
func wait[T any](t *testing.T, c <-chan T) (got T) {
	t.Helper()
	select {
	case got = <-c:
	case <-time.After(30 * time.Second):
		t.Fatal("it does not come")
	}
	return got
}

// soon waits for a condition that another goroutine makes true.
func soon(t *testing.T, what string, cond func() bool) {
	t.Helper()
	require.Eventually(t, cond, 30*time.Second, 5*time.Millisecond, what)
}
