package cli_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	v1 "github.com/roosthq/roost/api/gen/v1"
)

func withTree(t *testing.T) *server {
	t.Helper()
	s := newServer(t)
	s.snapshots = []v1.Template{snapshot("ready", running)}
	s.sandboxes[pausedID].Template = "ready"
	s.sandboxes[failedID].Template = "old"
	return s
}

func TestSnapshotTree(t *testing.T) {
	t.Parallel()
	s := withTree(t)
	require.Equal(t, "base  template, 300 MiB, 1 child\n"+
		"`-- "+running+"  running, disk 12 MiB, 1 child\n"+
		"    `-- ready  snapshot, 60 MiB (12 MiB own), 1 child\n"+
		"        `-- "+pausedID+"  paused, disk 12 MiB\n"+
		"(gone) old\n"+
		"`-- "+failedID+"  failed, disk 12 MiB\n", s.ok(t, "snapshot", "tree"), "all pages of sandboxes")
	require.Equal(t, "ready  snapshot, 60 MiB (12 MiB own), 1 child\n`-- "+pausedID+"  paused, disk 12 MiB\n", s.ok(t, "snapshot", "tree", "ready"))
	require.Equal(t, pausedID+"  paused, disk 12 MiB\n", s.ok(t, "snapshot", "tree", pausedID))
	r := s.run(t, nil, "snapshot", "tree", "nope")
	require.Equal(t, result{"", "roost: snapshot tree nope: there is no template, snapshot or sandbox of that name\nhint: `roost snapshot tree` without a name shows all\n", 1}, r)
	require.Equal(t, 2, s.run(t, nil, "snapshot", "tree", "a/b").code)
	require.Equal(t, 2, s.run(t, nil, "snapshot", "tree", "a", "b").code)
}

func TestSnapshotTreeAsJSON(t *testing.T) {
	t.Parallel()
	s := withTree(t)
	s.sandboxes[pausedID].CreatedAt = s.sandboxes[running].CreatedAt
	at, err := s.sandboxes[running].CreatedAt.MarshalText()
	require.NoError(t, err)
	require.JSONEq(t, `{"roots":[{"kind":"sandbox","name":"`+running+`","id":"`+running+`","gone":false,"state":"running","disk_used_bytes":12582912,"created_at":"`+string(at)+`","children":[
		{"kind":"snapshot","name":"ready","id":"id-ready","gone":false,"state":"ready","size_bytes":62914560,"own_bytes":12582912,"children":[
			{"kind":"sandbox","name":"`+pausedID+`","id":"`+pausedID+`","gone":false,"state":"paused","disk_used_bytes":12582912,"created_at":"`+string(at)+`","children":[]}]}]}]}`,
		s.ok(t, "snapshot", "tree", running, "--json"))
	gone := decode[struct{ Roots []map[string]any }](t, s.ok(t, "snapshot", "tree", "old", "--json")).Roots[0]
	require.Equal(t, true, gone["gone"])
	require.Len(t, gone["children"], 1)
	s.sandboxes, s.templates, s.snapshots = nil, nil, nil
	require.JSONEq(t, `{"roots":[]}`, s.ok(t, "snapshot", "tree", "--json"))
}

func TestSnapshotTreeOnATerminal(t *testing.T) {
	t.Parallel()
	s := withTree(t)
	for locale, want := range map[string]string{"LC_ALL=C.UTF-8": "└── " + running, "LANG=en_US.utf8": "└── " + running, "LC_ALL=C": "`-- " + running} {
		cmd := s.command(t, "snapshot", "tree")
		cmd.Env = append(cmd.Env, locale)
		sc := s.onTerminal(t, cmd)
		require.Equal(t, 0, sc.code())
		sc.want(want)
	}
}
