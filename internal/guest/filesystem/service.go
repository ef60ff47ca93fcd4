package filesystem

import (
	"context"
	"net/http"
	"os"
	"path/filepath"

	"connectrpc.com/connect"

	pb "github.com/roosthq/roost/api/gen/filesystem"
	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/guest/account"
	"github.com/roosthq/roost/internal/guest/identity"
)

// Service serves filesystem.Filesystem.
type Service struct {
	users    account.Database
	identity *identity.Identity
	watchers watchers
}

// NewService serves the file system as the users of db see it.
func NewService(db account.Database, id *identity.Identity) *Service {
	return &Service{users: db, identity: id, watchers: watchers{byID: map[string]*polled{}}}
}

// Close ends every polled watcher.
func (s *Service) Close() { s.watchers.closeAll() }

// Stat describes one entry.
func (s *Service) Stat(_ context.Context, req *connect.Request[pb.StatRequest]) (*connect.Response[pb.StatResponse], error) {
	_, path, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	entry, err := newDescriber(s.users).entry(path)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.StatResponse{Entry: entry}), nil
}

// MakeDir makes a directory and its parents.
func (s *Service) MakeDir(_ context.Context, req *connect.Request[pb.MakeDirRequest]) (*connect.Response[pb.MakeDirResponse], error) {
	user, path, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil, fault.New(fault.AlreadyExists, "make directory", path, "it exists")
	}
	if err := user.MkdirAll(path); err != nil {
		return nil, err
	}
	entry, err := newDescriber(s.users).entry(path)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.MakeDirResponse{Entry: entry}), nil
}

// Move renames an entry; parents of the destination are made.
func (s *Service) Move(_ context.Context, req *connect.Request[pb.MoveRequest]) (*connect.Response[pb.MoveResponse], error) {
	user, source, err := s.resolve(req.Header(), req.Msg.GetSource())
	if err != nil {
		return nil, err
	}
	destination, err := user.Resolve(req.Msg.GetDestination())
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(source); err != nil {
		return nil, account.FromOS(err, "move", source)
	}
	if err := user.MkdirAll(filepath.Dir(destination)); err != nil {
		return nil, err
	}
	if err := os.Rename(source, destination); err != nil {
		return nil, moveError(err, source, destination)
	}
	entry, err := newDescriber(s.users).entry(destination)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.MoveResponse{Entry: entry}), nil
}

// ListDir lists a directory, depth first.
func (s *Service) ListDir(ctx context.Context, req *connect.Request[pb.ListDirRequest]) (*connect.Response[pb.ListDirResponse], error) {
	_, path, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if err := mustBeDir(path, "list"); err != nil {
		return nil, err
	}
	out := &pb.ListDirResponse{}
	err = newDescriber(s.users).walk(ctx, path, max(1, int(min(req.Msg.GetDepth(), 1<<16))), func(e *pb.EntryInfo) {
		out.Entries = append(out.Entries, e)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(out), nil
}

// Remove removes an entry and everything below it; a missing one is fine.
func (s *Service) Remove(_ context.Context, req *connect.Request[pb.RemoveRequest]) (*connect.Response[pb.RemoveResponse], error) {
	_, path, err := s.resolve(req.Header(), req.Msg.GetPath())
	if err != nil {
		return nil, err
	}
	if path == "/" {
		return nil, fault.New(fault.Invalid, "remove", path, "the root directory cannot be removed")
	}
	if err := os.RemoveAll(path); err != nil {
		return nil, account.FromOS(err, "remove", path)
	}
	return connect.NewResponse(&pb.RemoveResponse{}), nil
}

func (s *Service) resolve(h http.Header, path string) (account.User, string, error) {
	user, err := s.users.FromRequest(h, s.identity.DefaultUser())
	if err != nil {
		return user, "", err
	}
	path, err = user.Resolve(path)
	return user, path, err
}

// walk visits what is below dir, depth levels deep. What vanishes meanwhile is left out.
func (d *describer) walk(ctx context.Context, dir string, depth int, visit func(*pb.EntryInfo)) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return account.FromOS(err, "list", dir)
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		path := filepath.Join(dir, e.Name())
		info, err := d.entry(path)
		if err != nil {
			continue
		}
		visit(info)
		if e.IsDir() && depth > 1 {
			if err := d.walk(ctx, path, depth-1, visit); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
	}
	return nil
}

func mustBeDir(path, op string) error {
	info, err := os.Stat(path)
	if err != nil {
		return account.FromOS(err, op, path)
	}
	if !info.IsDir() {
		return fault.New(fault.Invalid, op, path, "it is not a directory")
	}
	return nil
}
