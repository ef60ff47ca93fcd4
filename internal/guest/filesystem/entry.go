package filesystem

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/roosthq/roost/api/gen/filesystem"
	"github.com/roosthq/roost/internal/guest/account"
)

// describer makes entries; it reads the names of users and groups once.
type describer struct {
	users, groups map[uint32]string
}

func newDescriber(db account.Database) *describer {
	users, groups := db.Names()
	return &describer{users: users, groups: groups}
}

// entry describes what is at path.
func (d *describer) entry(path string) (*pb.EntryInfo, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, account.FromOS(err, "stat", path)
	}
	e := &pb.EntryInfo{
		Name:         filepath.Base(path),
		Path:         path,
		Type:         kind(info.Mode()),
		Mode:         uint32(info.Mode().Perm()),
		Size:         info.Size(),
		Permissions:  info.Mode().String(),
		ModifiedTime: timestamppb.New(info.ModTime()),
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		e.Owner, e.Group = name(d.users, stat.Uid), name(d.groups, stat.Gid)
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		followLink(e, path)
	}
	return e, nil
}

// followLink takes type and mode from the target; a broken link stays a link.
func followLink(e *pb.EntryInfo, path string) {
	target, err := os.Readlink(path)
	if err != nil {
		return
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		target = real
	}
	e.SymlinkTarget = &target
	if info, err := os.Stat(path); err == nil {
		e.Type, e.Mode = kind(info.Mode()), uint32(info.Mode().Perm())
	}
}

func kind(mode fs.FileMode) pb.FileType {
	switch {
	case mode.IsRegular():
		return pb.FileType_FILE_TYPE_FILE
	case mode.IsDir():
		return pb.FileType_FILE_TYPE_DIRECTORY
	case mode&fs.ModeSymlink != 0:
		return pb.FileType_FILE_TYPE_SYMLINK
	default:
		return pb.FileType_FILE_TYPE_UNSPECIFIED
	}
}

func name(names map[uint32]string, id uint32) string {
	if n, ok := names[id]; ok {
		return n
	}
	return strconv.FormatUint(uint64(id), 10)
}
