package filesystem

import (
	"context"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"connectrpc.com/connect"
	"github.com/fsnotify/fsnotify"

	pb "github.com/roosthq/roost/api/gen/filesystem"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/account"
)

const defaultKeepalive = 90 * time.Second

// watch follows one directory, or the tree below it.
type watch struct {
	root      string
	recursive bool
	entries   bool
	notify    *fsnotify.Watcher
	describe  *describer
}

func (s *Service) newWatch(h http.Header, path string, recursive, entries bool) (*watch, error) {
	_, root, err := s.resolve(h, path)
	if err != nil {
		return nil, err
	}
	if err := mustBeDir(root, "watch"); err != nil {
		return nil, err
	}
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, account.FromOS(err, "watch", root)
	}
	w := &watch{root: root, recursive: recursive, entries: entries, notify: notify, describe: newDescriber(s.users)}
	if err := w.add(root, nil); err != nil {
		_ = notify.Close()
		return nil, account.FromOS(err, "watch", root)
	}
	return w, nil
}

func (w *watch) close() { _ = w.notify.Close() }

// add watches dir and, recursively, the directories below it. found is told what is there:
// it may have been made before the watch on its parent was.
func (w *watch) add(dir string, found func(path string)) error {
	if err := w.notify.Add(dir); err != nil {
		return err
	}
	if !w.recursive {
		return nil
	}
	start := dir + "/" // the slash follows a dir that is itself a symlink
	return filepath.WalkDir(start, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == start {
			return ignoreGone(err)
		}
		if found != nil {
			found(path)
		}
		if d.IsDir() {
			return ignoreGone(w.notify.Add(path))
		}
		return nil
	})
}

// ignoreGone: what vanishes while it is looked at needs no watch.
func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// run hands every event to emit until ctx ends, emit fails or the watch breaks.
func (w *watch) run(ctx context.Context, emit func(*pb.FilesystemEvent) error) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-w.notify.Errors:
			return w.broken(err)
		case e, open := <-w.notify.Events:
			if !open {
				return nil
			}
			if err := w.handle(e, emit); err != nil {
				return err
			}
		}
	}
}

func (w *watch) handle(e fsnotify.Event, emit func(*pb.FilesystemEvent) error) error {
	for _, k := range kinds {
		if !e.Has(k.op) || e.Name == w.root {
			continue
		}
		if err := emit(w.event(e.Name, k.kind)); err != nil {
			return err
		}
	}
	if !w.recursive || !e.Has(fsnotify.Create) || !isRealDir(e.Name) {
		return nil
	}
	var failed error
	err := w.add(e.Name, func(path string) {
		failed = errors.Join(failed, emit(w.event(path, pb.EventType_EVENT_TYPE_CREATE)))
	})
	if ignoreGone(err) != nil {
		return w.broken(err)
	}
	return failed
}

// isRealDir is false for symlinks: following them could watch in circles.
func isRealDir(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}

var kinds = []struct {
	op   fsnotify.Op
	kind pb.EventType
}{
	{fsnotify.Create, pb.EventType_EVENT_TYPE_CREATE},
	{fsnotify.Write, pb.EventType_EVENT_TYPE_WRITE},
	{fsnotify.Remove, pb.EventType_EVENT_TYPE_REMOVE},
	{fsnotify.Rename, pb.EventType_EVENT_TYPE_RENAME},
	{fsnotify.Chmod, pb.EventType_EVENT_TYPE_CHMOD},
}

func (w *watch) event(path string, kind pb.EventType) *pb.FilesystemEvent {
	name, err := filepath.Rel(w.root, path)
	if err != nil {
		name = path
	}
	e := &pb.FilesystemEvent{Name: name, Type: kind}
	gone := kind == pb.EventType_EVENT_TYPE_REMOVE || kind == pb.EventType_EVENT_TYPE_RENAME
	if w.entries && !gone {
		e.Entry, _ = w.describe.entry(path) // nil when it vanished
	}
	return e
}

func (w *watch) broken(err error) error {
	if errors.Is(err, fsnotify.ErrEventOverflow) {
		return fault.New(fault.ResourceExhausted, "watch", w.root, "more changes than could be reported; some were lost").
			WithHint("List the directory and watch again.")
	}
	return account.FromOS(err, "watch", w.root)
}

// WatchDir streams the changes in a directory.
func (s *Service) WatchDir(ctx context.Context, req *connect.Request[pb.WatchDirRequest], stream *connect.ServerStream[pb.WatchDirResponse]) error {
	w, err := s.newWatch(req.Header(), req.Msg.GetPath(), req.Msg.GetRecursive(), req.Msg.GetIncludeEntry())
	if err != nil {
		return err
	}
	defer w.close()
	start := &pb.WatchDirResponse{Event: &pb.WatchDirResponse_Start{Start: &pb.WatchDirResponse_StartEvent{}}}
	if err := stream.Send(start); err != nil {
		return err
	}
	return s.streamWatch(ctx, w, interval(req.Header()), stream)
}

func (s *Service) streamWatch(ctx context.Context, w *watch, idle time.Duration, stream *connect.ServerStream[pb.WatchDirResponse]) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events, done := make(chan *pb.FilesystemEvent), make(chan error, 1)
	go func() {
		done <- w.run(ctx, func(e *pb.FilesystemEvent) error {
			select {
			case events <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	for {
		out := &pb.WatchDirResponse{}
		select {
		case e := <-events:
			out.Event = &pb.WatchDirResponse_Filesystem{Filesystem: e}
		case <-time.After(idle):
			out.Event = &pb.WatchDirResponse_Keepalive{Keepalive: &pb.WatchDirResponse_KeepAlive{}}
		case err := <-done:
			return err
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
}

func interval(h http.Header) time.Duration {
	seconds, err := strconv.Atoi(h.Get("Keepalive-Ping-Interval"))
	if err != nil || seconds < 1 || seconds > 86400 {
		return defaultKeepalive
	}
	return time.Duration(seconds) * time.Second
}
