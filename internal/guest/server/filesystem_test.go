package server

import (
	"os"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"

	pb "github.com/roosthq/roost/api/gen/filesystem"
)

func (g *guest) stat(path string) (*pb.EntryInfo, error) {
	res, err := g.files.Stat(g.t.Context(), connect.NewRequest(&pb.StatRequest{Path: path}))
	if err != nil {
		return nil, err
	}
	return res.Msg.GetEntry(), nil
}

func TestStatOfEachKind(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	require.NoError(t, os.WriteFile(g.home+"/f", []byte("12345"), 0o640))
	require.NoError(t, os.Symlink("f", g.home+"/link"))
	require.NoError(t, os.Symlink("nowhere", g.home+"/broken"))
	e, err := g.stat("~/f")
	require.NoError(t, err)
	require.Equal(t, pb.FileType_FILE_TYPE_FILE, e.GetType())
	require.EqualValues(t, 5, e.GetSize())
	require.EqualValues(t, 0o640, e.GetMode())
	require.Equal(t, "-rw-r-----", e.GetPermissions())
	require.Equal(t, "root", e.GetOwner())
	require.Nil(t, e.SymlinkTarget)
	e, err = g.stat("link")
	require.NoError(t, err)
	require.Equal(t, pb.FileType_FILE_TYPE_FILE, e.GetType())
	require.EqualValues(t, 0o640, e.GetMode())
	require.True(t, strings.HasPrefix(e.GetPermissions(), "L"))
	require.Equal(t, g.home+"/f", e.GetSymlinkTarget())
	e, err = g.stat("broken")
	require.NoError(t, err)
	require.Equal(t, pb.FileType_FILE_TYPE_SYMLINK, e.GetType())
	_, err = g.stat("missing")
	requireCode(t, connect.CodeNotFound, err)
	_, err = g.stat("a\x00b")
	requireCode(t, connect.CodeInvalidArgument, err)
	_, err = g.stat("/" + strings.Repeat("a/", 2100))
	requireCode(t, connect.CodeInvalidArgument, err)
}

func TestMakeMoveRemove(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	mk := func(path string) error {
		_, err := g.files.MakeDir(t.Context(), connect.NewRequest(&pb.MakeDirRequest{Path: path}))
		return err
	}
	require.NoError(t, mk("a/b"))
	e, err := g.stat("a")
	require.NoError(t, err)
	require.Equal(t, "user", e.GetOwner())
	requireCode(t, connect.CodeAlreadyExists, mk("a/b"))
	require.NoError(t, os.WriteFile(g.home+"/f", nil, 0o644))
	requireCode(t, connect.CodeInvalidArgument, mk("f"))
	requireCode(t, connect.CodeInvalidArgument, mk("f/below"))

	moved, err := g.files.Move(t.Context(), connect.NewRequest(&pb.MoveRequest{Source: "f", Destination: "new/place"}))
	require.NoError(t, err)
	require.Equal(t, g.home+"/new/place", moved.Msg.GetEntry().GetPath())
	_, err = g.files.Move(t.Context(), connect.NewRequest(&pb.MoveRequest{Source: "f", Destination: "x"}))
	requireCode(t, connect.CodeNotFound, err)

	for range 2 {
		_, err = g.files.Remove(t.Context(), connect.NewRequest(&pb.RemoveRequest{Path: "a"}))
		require.NoError(t, err)
	}
	_, err = g.files.Remove(t.Context(), connect.NewRequest(&pb.RemoveRequest{Path: "/"}))
	requireCode(t, connect.CodeInvalidArgument, err)
}

func TestListDir(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	require.NoError(t, os.MkdirAll(g.home+"/d/e/f", 0o755))
	require.NoError(t, os.WriteFile(g.home+"/d/a", nil, 0o644))
	require.NoError(t, os.Symlink(g.home+"/d", g.home+"/alias"))
	list := func(path string, depth uint32) ([]string, error) {
		res, err := g.files.ListDir(t.Context(), connect.NewRequest(&pb.ListDirRequest{Path: path, Depth: depth}))
		if err != nil {
			return nil, err
		}
		var paths []string
		for _, e := range res.Msg.GetEntries() {
			paths = append(paths, strings.TrimPrefix(e.GetPath(), g.home+"/"))
		}
		return paths, nil
	}
	for depth, want := range map[uint32][]string{
		0: {"d/a", "d/e"}, 1: {"d/a", "d/e"}, 2: {"d/a", "d/e", "d/e/f"},
	} {
		got, err := list("d", depth)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	got, err := list("alias", 1)
	require.NoError(t, err)
	require.Equal(t, []string{"alias/a", "alias/e"}, got)
	_, err = list("d/a", 1)
	requireCode(t, connect.CodeInvalidArgument, err)
	_, err = list("none", 1)
	requireCode(t, connect.CodeNotFound, err)
}

func TestWatchDir(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	require.NoError(t, os.Mkdir(g.home+"/real", 0o755))
	require.NoError(t, os.Mkdir(g.home+"/real/old", 0o755))
	require.NoError(t, os.Symlink("real", g.home+"/alias"))
	stream, err := g.files.WatchDir(t.Context(), connect.NewRequest(&pb.WatchDirRequest{Path: "alias", Recursive: true, IncludeEntry: true}))
	require.NoError(t, err)
	defer func() { _ = stream.Close() }()
	require.True(t, stream.Receive(), "%v", stream.Err())
	require.NotNil(t, stream.Msg().GetStart())
	require.NoError(t, os.MkdirAll(g.home+"/real/x/y", 0o755))
	seen := map[string]bool{}
	for !seen["x/y"] {
		require.True(t, stream.Receive(), "%v", stream.Err())
		e := stream.Msg().GetFilesystem()
		seen[e.GetName()] = true
		require.Equal(t, pb.EventType_EVENT_TYPE_CREATE, e.GetType())
		require.Equal(t, pb.FileType_FILE_TYPE_DIRECTORY, e.GetEntry().GetType())
	}
	require.NoError(t, os.WriteFile(g.home+"/real/x/y/deep", []byte("1"), 0o644))
	for {
		require.True(t, stream.Receive(), "%v", stream.Err())
		if e := stream.Msg().GetFilesystem(); e.GetName() == "x/y/deep" && e.GetType() == pb.EventType_EVENT_TYPE_WRITE {
			break
		}
	}
	require.NoError(t, os.WriteFile(g.home+"/real/old/f", []byte("1"), 0o644))
	for {
		require.True(t, stream.Receive(), "%v", stream.Err())
		if e := stream.Msg().GetFilesystem(); e.GetName() == "old/f" {
			break
		}
	}
	missing, err := g.files.WatchDir(t.Context(), connect.NewRequest(&pb.WatchDirRequest{Path: "/no/dir"}))
	require.NoError(t, err)
	require.False(t, missing.Receive())
	requireCode(t, connect.CodeNotFound, missing.Err())
}

func TestPolledWatcher(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	made, err := g.files.CreateWatcher(t.Context(), connect.NewRequest(&pb.CreateWatcherRequest{Path: g.home}))
	require.NoError(t, err)
	id := made.Msg.GetWatcherId()
	require.NoError(t, os.WriteFile(g.home+"/polled", []byte("1"), 0o644))
	require.Eventually(t, func() bool {
		res, err := g.files.GetWatcherEvents(t.Context(), connect.NewRequest(&pb.GetWatcherEventsRequest{WatcherId: id}))
		return err == nil && len(res.Msg.GetEvents()) > 0 && res.Msg.GetEvents()[0].GetName() == "polled"
	}, 30*time.Second, 5*time.Millisecond)
	_, err = g.files.RemoveWatcher(t.Context(), connect.NewRequest(&pb.RemoveWatcherRequest{WatcherId: id}))
	require.NoError(t, err)
	_, err = g.files.GetWatcherEvents(t.Context(), connect.NewRequest(&pb.GetWatcherEventsRequest{WatcherId: id}))
	requireCode(t, connect.CodeNotFound, err)
}
