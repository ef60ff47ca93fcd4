package leak_test

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	hostv1 "github.com/roosthq/roost/api/gen/roost/host/v1"
	"github.com/roosthq/roost/internal/control/agenttest"
	"github.com/roosthq/roost/internal/control/host"
	"github.com/roosthq/roost/internal/control/leak"
	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/control/template"
	"github.com/roosthq/roost/internal/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newService(t *testing.T) (*leak.Service, *store.Store, *agenttest.Agent) {
	t.Helper()
	agent := agenttest.New(t)
	db, err := store.OpenSQLite(t.Context(), filepath.Join(t.TempDir(), store.FileName))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	require.NoError(t, db.PutHost(t.Context(), &store.Host{ID: host.LocalID}))
	templates := template.New(db, agent.Client, slog.New(slog.DiscardHandler), time.Now)
	t.Cleanup(templates.Stop)
	return leak.New(db, agent.Client, templates), db, agent
}

// kinds are "kind name removed error" of each leak.
func kinds(list []*leak.Leak) []string {
	var out []string
	for _, l := range list {
		text := l.GetKind() + " " + l.GetName()
		if l.GetRemoved() {
			text += " removed"
		}
		if l.GetError() != "" {
			text += ": " + l.GetError()
		}
		out = append(out, text)
	}
	return out
}

func TestLeaks(t *testing.T) {
	t.Parallel()
	s, db, agent := newService(t)
	ctx := t.Context()
	list, err := s.List(ctx, leak.Look)
	require.NoError(t, err)
	require.Empty(t, list)

	// What has a row is nobody's leak, whatever its state.
	require.NoError(t, db.AddTemplate(ctx, &store.Template{ID: "t", Name: "mine", Type: store.BaseTemplate,
		State: store.TemplateCreating, HostID: host.LocalID, SnapshotID: "hidden"}))
	require.NoError(t, db.AddSandboxes(ctx, []*store.Sandbox{{ID: "known", HostID: host.LocalID, State: store.Deleted}}))
	agent.PutTemplate(&hostv1.Template{Name: "mine"})
	agent.PutSnapshot(&hostv1.Snapshot{Id: "hidden"})
	agent.Put(&hostv1.Sandbox{Id: "known"})

	agent.PutLeak(&hostv1.Leak{Kind: "process", Name: "123", Detail: "qemu"})
	agent.PutTemplate(&hostv1.Template{Name: "nobodys", SizeBytes: 5})
	agent.PutSnapshot(&hostv1.Snapshot{Id: "stray", OwnBytes: 7})
	agent.Put(&hostv1.Sandbox{Id: "unknown", Generation: 3, DiskBytes: 1, MemoryBytes: 2})
	want := []string{"process 123", "sandbox unknown", "snapshot stray", "template nobodys"}
	for range 2 {
		list, err = s.List(ctx, leak.Look)
		require.NoError(t, err)
		require.Equal(t, want, kinds(list), "looking changes nothing")
	}
	require.EqualValues(t, []int64{0, 3, 7, 5}, []int64{list[0].Bytes, list[1].Bytes, list[2].Bytes, list[3].Bytes})

	agent.Before(func(_ context.Context, m, _ string) error {
		if m == "DeleteSnapshot" {
			return connect.NewError(connect.CodeInternal, errors.New("busy"))
		}
		return nil
	})
	list, err = s.List(ctx, leak.Debris)
	require.NoError(t, err)
	require.Equal(t, "process 123 removed", kinds(list)[0])
	for _, l := range list[1:] {
		require.False(t, l.GetRemoved(), "what holds data stays")
		require.Contains(t, l.GetError(), "--with-data")
	}
	require.NotNil(t, agent.Sandbox("unknown"))
	list, err = s.List(ctx, leak.Everything)
	require.NoError(t, err)
	require.Equal(t, []string{"sandbox unknown removed", "snapshot stray: busy", "template nobodys removed"}, kinds(list))
	agent.Before(nil)
	list, err = s.List(ctx, leak.Everything)
	require.NoError(t, err)
	require.Equal(t, []string{"snapshot stray removed"}, kinds(list))
	require.NotNil(t, agent.Template("mine"))
	require.NotNil(t, agent.Snapshot("hidden"))
	require.NotNil(t, agent.Sandbox("known"))
	agent.Unlisten()
	_, err = s.List(ctx, leak.Look)
	require.True(t, fault.Is(err, fault.Unavailable), "%v", err)
}
