// Package storetest is the contract of control/store, run against every database that it
// supports. Open gives each test a fresh, migrated store and closes it with the test.
package storetest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/control/store"
	"github.com/roosthq/roost/internal/fault"
)

// Open makes a store for one test.
type Open func(t *testing.T) *store.Store

// epoch is the tests' fixed clock.
var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// Run runs the whole contract.
func Run(t *testing.T, open Open) {
	tests := map[string]func(*testing.T, *store.Store){
		"RoundTrip":             testRoundTrip,
		"MissingRow":            testMissingRow,
		"ListPages":             testListPages,
		"ListState":             testListState,
		"SwapOnce":              testSwapOnce,
		"SwapNamesSeen":         testSwapSeen,
		"SwapAll":               testSwapAll,
		"CanceledContext":       testCanceled,
		"IdempotencyRace":       testIdempotencyRace,
		"IdempotencyExpires":    testIdempotencyExpires,
		"IdempotencyForgotten":  testIdempotencyForgotten,
		"Purge":                 testPurge,
		"APIKeys":               testAPIKeys,
		"FirstAPIKeyRace":       testFirstKeyRace,
		"LastAPIKeyStays":       testLastKey,
		"Host":                  testHost,
		"UnknownHost":           testUnknownHost,
		"AddSandboxesAllOrNone": testAddSandboxes,
		"LineageIsFixed":        testLineage,
		"TemplateRoundTrip":     testTemplateRoundTrip,
		"TemplateNames":         testTemplateNames,
		"TemplateNameRace":      testTemplateNameRace,
		"TemplateLists":         testTemplateLists,
		"TemplateSwapOnce":      testTemplateSwapOnce,
		"TemplateSwapNamesSeen": testTemplateSwapSeen,
		"TemplateRemove":        testTemplateRemove,
		"TemplateAdopts":        testTemplateAdopts,
		"Children":              testChildren,
	}
	for name, f := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := open(t)
			require.NoError(t, s.PutHost(t.Context(), &store.Host{ID: "local", CreatedAt: store.At(epoch)}))
			f(t, s)
		})
	}
}

func newRow(id string, created time.Time) *store.Sandbox {
	return &store.Sandbox{
		ID: id, HostID: "local", State: store.Running, Template: "base",
		VCPUs: 1, MemoryMB: 512, DiskSizeMB: 5120, IdleTimeoutS: 300,
		Metadata: map[string]string{"a": "b"}, Phases: []store.Phase{{Name: "boot", Microseconds: 12}},
		Generation: 1, Version: 1, CreatedAt: store.At(created),
	}
}

func add(t *testing.T, s *store.Store, row *store.Sandbox) *store.Sandbox {
	t.Helper()
	earlier, err := s.AddSandbox(t.Context(), row, nil, time.Time{})
	require.NoError(t, err)
	require.Nil(t, earlier)
	return row
}

func get(t *testing.T, s *store.Store, id string) *store.Sandbox {
	t.Helper()
	row, err := s.Sandbox(t.Context(), id)
	require.NoError(t, err)
	return row
}

func testRoundTrip(t *testing.T, s *store.Store) {
	row := newRow("one", epoch)
	row.Reason, row.Runtime, row.Isolation = "it's \"quoted\" ? $1 é", "microvm", "emulated"
	row.DiskUsedBytes, row.MemoryUsedBytes = 1<<40, 1<<33
	row.ClaimID, row.ClaimDeadline = "op", store.At(epoch.Add(time.Second))
	add(t, s, row)
	require.Equal(t, row, get(t, s, "one"))
	require.True(t, row.Claimed(epoch))
	require.False(t, row.Claimed(epoch.Add(time.Second)))
	require.Equal(t, epoch, row.CreatedAt.Time())
}

func testMissingRow(t *testing.T, s *store.Store) {
	_, err := s.Sandbox(t.Context(), "nobody")
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	require.ErrorContains(t, err, "sandbox nobody")
}

func testListPages(t *testing.T, s *store.Store) {
	// Five rows of one instant: the id must break the tie, or a page loses rows.
	for i := range 5 {
		add(t, s, newRow(fmt.Sprintf("tie%d", i), epoch))
	}
	add(t, s, newRow("old", epoch.Add(-time.Microsecond)))
	add(t, s, newRow("new", epoch.Add(time.Microsecond)))
	var ids []string
	var after *store.Cursor
	for {
		page, err := s.Sandboxes(t.Context(), store.Filter{Limit: 2, After: after})
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		for _, r := range page {
			ids = append(ids, r.ID)
			after = &store.Cursor{CreatedAt: r.CreatedAt, ID: r.ID}
		}
	}
	require.Equal(t, []string{"new", "tie4", "tie3", "tie2", "tie1", "tie0", "old"}, ids)
}

func testListState(t *testing.T, s *store.Store) {
	add(t, s, newRow("run", epoch))
	gone := newRow("gone", epoch)
	gone.State = store.Deleted
	add(t, s, gone)
	for state, want := range map[store.State]string{"": "run", store.Running: "run", store.Deleted: "gone"} {
		rows, err := s.Sandboxes(t.Context(), store.Filter{State: state})
		require.NoError(t, err)
		require.Len(t, rows, 1, state)
		require.Equal(t, want, rows[0].ID)
	}
	rows, err := s.Sandboxes(t.Context(), store.Filter{State: store.Paused})
	require.NoError(t, err)
	require.Empty(t, rows)
}

func testSwapOnce(t *testing.T, s *store.Store) {
	seen := add(t, s, newRow("one", epoch))
	var won atomic.Int64
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			next := seen.Copy()
			next.State, next.ClaimID = store.Pausing, fmt.Sprint(i)
			ok, err := s.Swap(t.Context(), seen, next)
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
	require.EqualValues(t, 2, get(t, s, "one").Version)
}

func testSwapSeen(t *testing.T, s *store.Store) {
	row := add(t, s, newRow("one", epoch))
	spoil := map[string]func(*store.Sandbox){
		"state":      func(r *store.Sandbox) { r.State = store.Paused },
		"generation": func(r *store.Sandbox) { r.Generation++ },
		"version":    func(r *store.Sandbox) { r.Version++ },
		"id":         func(r *store.Sandbox) { r.ID = "two" },
	}
	for what, f := range spoil {
		seen := row.Copy()
		f(seen)
		ok, err := s.Swap(t.Context(), seen, row.Copy())
		require.NoError(t, err, what)
		require.False(t, ok, what)
	}
	next := row.Copy()
	next.Generation, next.IdleTimeoutS, next.Metadata = 9, 0, map[string]string{}
	ok, err := s.Swap(t.Context(), row, next)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, next, get(t, s, "one"))
}

func testSwapAll(t *testing.T, s *store.Store) {
	a, b := add(t, s, newRow("a", epoch)), add(t, s, newRow("b", epoch))
	stale := a.Copy()
	stale.Version = 7
	next := b.Copy()
	next.State = store.Failed
	n, err := s.SwapAll(t.Context(), []store.Swap{{Seen: stale, Next: stale.Copy()}, {Seen: b, Next: next}})
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, store.Running, get(t, s, "a").State)
	require.Equal(t, store.Failed, get(t, s, "b").State)
}

func testCanceled(t *testing.T, s *store.Store) {
	row := add(t, s, newRow("one", epoch))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Swap(ctx, row, row.Copy())
	require.True(t, fault.Is(err, fault.Canceled), "%v", err)
	_, err = s.Sandbox(ctx, "one")
	require.True(t, fault.Is(err, fault.Canceled), "%v", err)
	require.EqualValues(t, 1, get(t, s, "one").Version)
}

func idem(id string, at time.Time) *store.Idempotency {
	return &store.Idempotency{APIKeyID: "k", Key: "idem", RequestHash: "h", SandboxID: id, CreatedAt: store.At(at)}
}

func testIdempotencyRace(t *testing.T, s *store.Store) {
	var inserted, repeated atomic.Int64
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			id := fmt.Sprint("sb", i)
			earlier, err := s.AddSandbox(t.Context(), newRow(id, epoch), idem(id, epoch), epoch.Add(-time.Hour))
			switch {
			case err != nil:
				t.Error(err)
			case earlier == nil:
				inserted.Add(1)
			default:
				repeated.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, inserted.Load())
	require.EqualValues(t, 19, repeated.Load())
	rows, err := s.Sandboxes(t.Context(), store.Filter{})
	require.NoError(t, err)
	require.Len(t, rows, 1)
}

func testIdempotencyExpires(t *testing.T, s *store.Store) {
	_, err := s.AddSandbox(t.Context(), newRow("a", epoch), idem("a", epoch), epoch)
	require.NoError(t, err)
	earlier, err := s.AddSandbox(t.Context(), newRow("b", epoch), idem("b", epoch), epoch)
	require.NoError(t, err)
	require.Equal(t, "a", earlier.SandboxID)
	later := epoch.Add(25 * time.Hour)
	earlier, err = s.AddSandbox(t.Context(), newRow("c", later), idem("c", later), later.Add(-24*time.Hour))
	require.NoError(t, err)
	require.Nil(t, earlier)
}

func testIdempotencyForgotten(t *testing.T, s *store.Store) {
	_, err := s.AddSandbox(t.Context(), newRow("a", epoch), idem("a", epoch), epoch)
	require.NoError(t, err)
	require.NoError(t, s.ForgetIdempotency(t.Context(), "a"))
	earlier, err := s.AddSandbox(t.Context(), newRow("b", epoch), idem("b", epoch), epoch)
	require.NoError(t, err)
	require.Nil(t, earlier)
}

func testPurge(t *testing.T, s *store.Store) {
	row := newRow("gone", epoch)
	row.State, row.DeletedAt = store.Deleted, store.At(epoch)
	_, err := s.AddSandbox(t.Context(), row, idem("gone", epoch), epoch)
	require.NoError(t, err)
	add(t, s, newRow("run", epoch))
	n, err := s.PurgeSandboxes(t.Context(), epoch)
	require.NoError(t, err)
	require.Zero(t, n)
	// The binding of an idempotency key must not keep its row from going.
	n, err = s.PurgeSandboxes(t.Context(), epoch.Add(time.Microsecond))
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.Equal(t, store.Running, get(t, s, "run").State)
	require.NoError(t, s.PurgeIdempotency(t.Context(), epoch.Add(time.Hour)))
}

func testAPIKeys(t *testing.T, s *store.Store) {
	key := &store.APIKey{ID: "k1", Name: "ci", Prefix: "roost_ab", Hash: "h1", CreatedAt: store.At(epoch)}
	require.NoError(t, s.AddAPIKey(t.Context(), key))
	require.Error(t, s.AddAPIKey(t.Context(), &store.APIKey{ID: "k2", Hash: "h1"}), "a hash is unique")
	found, err := s.APIKeyByHash(t.Context(), "h1")
	require.NoError(t, err)
	require.Equal(t, key, found)
	_, err = s.APIKeyByHash(t.Context(), "h2")
	require.True(t, fault.Is(err, fault.NotFound))

	require.NoError(t, s.TouchAPIKey(t.Context(), "k1", epoch))
	require.NoError(t, s.TouchAPIKey(t.Context(), "k1", epoch.Add(30*time.Second)))
	keys, err := s.APIKeys(t.Context())
	require.NoError(t, err)
	require.Equal(t, store.At(epoch), keys[0].LastUsedAt, "at most once a minute")
	require.NoError(t, s.TouchAPIKey(t.Context(), "k1", epoch.Add(61*time.Second)))
	found, err = s.APIKeyByHash(t.Context(), "h1")
	require.NoError(t, err)
	require.Equal(t, store.At(epoch.Add(61*time.Second)), found.LastUsedAt)
}

func testFirstKeyRace(t *testing.T, s *store.Store) {
	var added atomic.Int64
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			ok, err := s.AddFirstAPIKey(t.Context(), &store.APIKey{ID: fmt.Sprint(i), Hash: fmt.Sprint(i)})
			if err != nil {
				t.Error(err)
			}
			if ok {
				added.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, added.Load())
}

func testLastKey(t *testing.T, s *store.Store) {
	require.NoError(t, s.AddAPIKey(t.Context(), &store.APIKey{ID: "a", Hash: "a"}))
	require.NoError(t, s.AddAPIKey(t.Context(), &store.APIKey{ID: "b", Hash: "b"}))
	require.True(t, fault.Is(s.RemoveAPIKey(t.Context(), "c"), fault.NotFound))
	var refused atomic.Int64
	var wg sync.WaitGroup
	for _, id := range []string{"a", "b"} {
		wg.Go(func() {
			if fault.Is(s.RemoveAPIKey(t.Context(), id), fault.FailedPrecondition) {
				refused.Add(1)
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, 1, refused.Load())
	keys, err := s.APIKeys(t.Context())
	require.NoError(t, err)
	require.Len(t, keys, 1)
}

func testHost(t *testing.T, s *store.Store) {
	require.NoError(t, s.PutHost(t.Context(), &store.Host{
		ID: "local", Hostname: "box", CreatedAt: store.At(epoch.Add(time.Hour)), SeenAt: store.At(epoch.Add(time.Hour))}))
	h, err := s.Host(t.Context(), "local")
	require.NoError(t, err)
	require.Equal(t, "box", h.Hostname)
	require.Equal(t, store.At(epoch), h.CreatedAt, "the first insert's time stays")
	require.Equal(t, store.At(epoch.Add(time.Hour)), h.SeenAt)
	_, err = s.Host(t.Context(), "other")
	require.True(t, fault.Is(err, fault.NotFound))
}

func testUnknownHost(t *testing.T, s *store.Store) {
	row := newRow("one", epoch)
	row.HostID = "nowhere"
	_, err := s.AddSandbox(t.Context(), row, nil, epoch)
	require.Error(t, err, "foreign keys are enforced")
}
