package storetest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

func newTemplate(id, name string) *store.Template {
	return &store.Template{
		ID: id, Name: name, Type: store.SnapshotTemplate, State: store.TemplateReady, HostID: "local",
		Phases: []store.Phase{{Name: "freeze", Microseconds: 7}}, Warm: []store.Size{{VCPUs: 1, MemoryMB: 512}},
		Version: 1, CreatedAt: store.At(epoch),
	}
}

func addTemplate(t *testing.T, s *store.Store, row *store.Template) *store.Template {
	t.Helper()
	require.NoError(t, s.AddTemplate(t.Context(), row))
	return row
}

func getTemplate(t *testing.T, s *store.Store, name string) *store.Template {
	t.Helper()
	row, err := s.Template(t.Context(), name)
	require.NoError(t, err)
	return row
}

func testTemplateRoundTrip(t *testing.T, s *store.Store) {
	row := newTemplate("id1", "name1")
	row.Reason, row.Digest, row.SnapshotID = "it's \"quoted\" ? $1 é", "sha256:x", "id1"
	row.Runtime, row.Isolation, row.VCPUs, row.MemoryMB, row.DiskSizeMB = "qemu", "emulated", 2, 1024, 9000
	row.DiskBytes, row.SizeBytes, row.OwnBytes, row.FrozenUS = 1<<41, 1<<40, 1<<39, 12345
	row.ParentID, row.SourceSandboxID, row.BuiltByHost, row.DiskOnly = "p", "sb", true, true
	row.ClaimID, row.ClaimDeadline = "op", store.At(epoch.Add(time.Second))
	addTemplate(t, s, row)
	require.Equal(t, row, getTemplate(t, s, "name1"))
	require.Equal(t, row, getTemplate(t, s, "id1"), "by id")
	require.True(t, row.Claimed(epoch))
	require.False(t, row.Claimed(epoch.Add(time.Second)))
	_, err := s.Template(t.Context(), "nobody")
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	require.ErrorContains(t, err, "template nobody")
}

// One name space for both types, in which an id is a name too.
func testTemplateNames(t *testing.T, s *store.Store) {
	addTemplate(t, s, newTemplate("a", "one"))
	base := newTemplate("b", "one")
	base.Type = store.BaseTemplate
	for what, row := range map[string]*store.Template{"other type": base, "another's id": newTemplate("c", "a")} {
		err := s.AddTemplate(t.Context(), row)
		require.True(t, fault.Is(err, fault.AlreadyExists), "%s: %v", what, err)
		require.ErrorContains(t, err, "template "+row.Name)
	}
	addTemplate(t, s, newTemplate("d", "d")) // its own id
	rows, err := s.Templates(t.Context(), store.TemplateFilter{})
	require.NoError(t, err)
	require.Len(t, rows, 2)
}

func testTemplateNameRace(t *testing.T, s *store.Store) {
	var added, taken atomic.Int64
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			err := s.AddTemplate(t.Context(), newTemplate(fmt.Sprint("id", i), "name"))
			switch {
			case err == nil:
				added.Add(1)
			case fault.Is(err, fault.AlreadyExists):
				taken.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, added.Load())
	require.EqualValues(t, 19, taken.Load())
}

func testTemplateLists(t *testing.T, s *store.Store) {
	for i, row := range []*store.Template{newTemplate("old", "old"), newTemplate("mid", "mid"), newTemplate("new", "new")} {
		row.CreatedAt = store.At(epoch.Add(time.Duration(i) * time.Microsecond))
		if row.ID == "mid" {
			row.Type = store.BaseTemplate
		} else {
			row.SourceSandboxID = "of-" + row.ID
		}
		addTemplate(t, s, row)
	}
	for _, c := range []struct {
		filter store.TemplateFilter
		want   []string
	}{
		{store.TemplateFilter{}, []string{"new", "mid", "old"}},
		{store.TemplateFilter{Type: store.SnapshotTemplate}, []string{"new", "old"}},
		{store.TemplateFilter{Type: store.BaseTemplate}, []string{"mid"}},
		{store.TemplateFilter{SourceSandboxID: "of-old"}, []string{"old"}},
		{store.TemplateFilter{SourceSandboxID: "nobody"}, nil},
	} {
		rows, err := s.Templates(t.Context(), c.filter)
		require.NoError(t, err)
		var ids []string
		for _, r := range rows {
			ids = append(ids, r.ID)
		}
		require.Equal(t, c.want, ids, "%+v", c.filter)
	}
}

func testTemplateSwapOnce(t *testing.T, s *store.Store) {
	seen := addTemplate(t, s, newTemplate("one", "one"))
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			next := seen.Copy()
			next.State, next.ClaimID = store.TemplateDeleting, fmt.Sprint(i)
			ok, err := s.SwapTemplate(t.Context(), seen, next)
			if err != nil {
				t.Error(err)
			}
			if ok {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, won.Load())
	require.EqualValues(t, 2, getTemplate(t, s, "one").Version)
}

func testTemplateSwapSeen(t *testing.T, s *store.Store) {
	row := addTemplate(t, s, newTemplate("one", "one"))
	for what, f := range map[string]func(*store.Template){
		"state":   func(r *store.Template) { r.State = store.TemplateLost },
		"version": func(r *store.Template) { r.Version++ },
		"id":      func(r *store.Template) { r.ID = "two" },
	} {
		seen := row.Copy()
		f(seen)
		ok, err := s.SwapTemplate(t.Context(), seen, row.Copy())
		require.NoError(t, err, what)
		require.False(t, ok, what)
		ok, err = s.RemoveTemplate(t.Context(), seen)
		require.NoError(t, err, what)
		require.False(t, ok, what)
	}
	next := row.Copy()
	next.State, next.SizeBytes, next.Warm, next.BuiltByHost = store.TemplateLost, 0, nil, true
	gone := addTemplate(t, s, newTemplate("two", "two"))
	n, err := s.SwapTemplates(t.Context(), []store.TemplateSwap{{Seen: row, Next: next}, {Seen: gone}})
	require.NoError(t, err)
	require.Equal(t, 2, n)
	require.Equal(t, next, getTemplate(t, s, "one"))
	_, err = s.Template(t.Context(), "two")
	require.True(t, fault.Is(err, fault.NotFound))
}

func testTemplateRemove(t *testing.T, s *store.Store) {
	row := addTemplate(t, s, newTemplate("one", "one"))
	ok, err := s.RemoveTemplate(t.Context(), row)
	require.NoError(t, err)
	require.True(t, ok)
	ok, err = s.RemoveTemplate(t.Context(), row)
	require.NoError(t, err)
	require.False(t, ok)
	addTemplate(t, s, newTemplate("two", "one")) // the name is free again
}

// Sandboxes of before this table find the row of their base when the host tells of it.
func testTemplateAdopts(t *testing.T, s *store.Store) {
	row := add(t, s, newRow("one", epoch))
	made := newTemplate("m", "base-of-mine")
	addTemplate(t, s, made)
	base := newTemplate("b", "base")
	base.Type, base.BuiltByHost = store.BaseTemplate, true
	addTemplate(t, s, base)
	require.Equal(t, "b", get(t, s, "one").TemplateID)
	next := row.Copy() // read before the base came
	next.State = store.Paused
	ok, err := s.Swap(t.Context(), row, next)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "b", get(t, s, "one").TemplateID, "no swap takes it back")
}

func testChildren(t *testing.T, s *store.Store) {
	got, err := s.Children(t.Context())
	require.NoError(t, err)
	require.Empty(t, got)
	for i, state := range []store.State{store.Running, store.Paused, store.Deleted} {
		row := newRow(fmt.Sprint("sb", i), epoch)
		row.TemplateID, row.State = "a", state
		add(t, s, row)
	}
	child := newTemplate("b", "b")
	child.ParentID = "a"
	addTemplate(t, s, child)
	grandchild := newTemplate("c", "c")
	grandchild.ParentID = "b"
	addTemplate(t, s, grandchild)
	got, err = s.Children(t.Context())
	require.NoError(t, err)
	require.Equal(t, map[string]int{"a": 3, "b": 1}, got)
}

func testAddSandboxes(t *testing.T, s *store.Store) {
	require.NoError(t, s.AddSandboxes(t.Context(), []*store.Sandbox{newRow("a", epoch), newRow("b", epoch)}))
	require.Error(t, s.AddSandboxes(t.Context(), []*store.Sandbox{newRow("c", epoch), newRow("a", epoch)}))
	_, err := s.Sandbox(t.Context(), "c")
	require.True(t, fault.Is(err, fault.NotFound), "none of a batch that failed")
}

func testLineage(t *testing.T, s *store.Store) {
	row := newRow("one", epoch)
	row.TemplateID, row.ForkedFrom = "t", "f"
	add(t, s, row)
	require.Equal(t, row, get(t, s, "one"))
	next := row.Copy()
	next.TemplateID, next.ForkedFrom, next.State = "", "", store.Lost
	ok, err := s.Swap(t.Context(), row, next)
	require.NoError(t, err)
	require.True(t, ok)
	got := get(t, s, "one")
	require.Equal(t, [3]string{"t", "f", "lost"}, [3]string{got.TemplateID, got.ForkedFrom, string(got.State)})
}
