package disktest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The parts of the NBD protocol (github.com/NetworkBlockDevice/nbd, doc/proto.md) that the
// suite needs: fixed newstyle negotiation, simple replies.
const (
	nbdMagic        = 0x4e42444d41474943 // "NBDMAGIC"
	nbdOptionMagic  = 0x49484156454f5054 // "IHAVEOPT"
	nbdRequestMagic = 0x25609513
	nbdReplyMagic   = 0x67446698

	nbdFixedNewstyle = 1
	nbdNoZeroes      = 2
	nbdExportName    = 1

	nbdRead        = 0
	nbdWrite       = 1
	nbdDisconnect  = 2
	nbdFlush       = 3
	nbdTrim        = 4
	nbdWriteZeroes = 6

	// nbdLargest is the longest request that servers must take.
	nbdLargest = 32 * mb
	// nbdPatience bounds one request: a dead server fails a test instead of holding it.
	nbdPatience = 30 * time.Second
)

// nbdClient sends one request at a time.
type nbdClient struct {
	mu   sync.Mutex
	conn net.Conn
	size int64
}

func dialNBD(ctx context.Context, socket, export string) (*nbdClient, error) {
	dialer := net.Dialer{Timeout: nbdPatience}
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	c := &nbdClient{conn: conn}
	if err := c.negotiate(export); err != nil {
		return nil, errors.Join(fmt.Errorf("negotiate with NBD server %s: %w", socket, err), conn.Close())
	}
	return c, nil
}

func (c *nbdClient) negotiate(export string) error {
	if err := c.conn.SetDeadline(time.Now().Add(nbdPatience)); err != nil {
		return err
	}
	var hello struct {
		Magic, Option uint64
		Flags         uint16
	}
	if err := binary.Read(c.conn, binary.BigEndian, &hello); err != nil {
		return err
	}
	if hello.Magic != nbdMagic || hello.Option != nbdOptionMagic || hello.Flags&3 != nbdFixedNewstyle|nbdNoZeroes {
		return fmt.Errorf("unexpected greeting %+v", hello)
	}
	b := binary.BigEndian.AppendUint32(nil, nbdFixedNewstyle|nbdNoZeroes)
	b = binary.BigEndian.AppendUint64(b, nbdOptionMagic)
	b = binary.BigEndian.AppendUint32(b, nbdExportName)
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	if _, err := c.conn.Write(append(b, export...)); err != nil {
		return err
	}
	var info struct {
		Size  int64
		Flags uint16
	}
	err := binary.Read(c.conn, binary.BigEndian, &info)
	c.size = info.Size
	return err
}

// request sends a command, with out as its payload, and reads the reply, with in as its payload.
func (c *nbdClient) request(command uint16, offset, n int64, out, in []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.conn.SetDeadline(time.Now().Add(nbdPatience)); err != nil {
		return err
	}
	if _, err := c.conn.Write(append(nbdHeader(command, offset, n), out...)); err != nil {
		return err
	}
	var reply struct {
		Magic, Error uint32
		Handle       uint64
	}
	if err := binary.Read(c.conn, binary.BigEndian, &reply); err != nil {
		return err
	}
	if reply.Magic != nbdReplyMagic || reply.Error != 0 {
		return fmt.Errorf("NBD command %d at %d+%d: reply %+v", command, offset, n, reply)
	}
	_, err := io.ReadFull(c.conn, in)
	return err
}

func nbdHeader(command uint16, offset, n int64) []byte {
	b := binary.BigEndian.AppendUint32(nil, nbdRequestMagic)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, command)
	b = binary.BigEndian.AppendUint64(b, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(offset))
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

// Size is the export's size when the client connected.
func (c *nbdClient) Size() int64 { return c.size }

// ReadAt reads, in as many requests as it takes.
func (c *nbdClient) ReadAt(b []byte, offset int64) (int, error) {
	return inPieces(b, func(at int, piece []byte) error {
		return c.request(nbdRead, offset+int64(at), int64(len(piece)), nil, piece)
	})
}

// WriteAt writes, in as many requests as it takes.
func (c *nbdClient) WriteAt(b []byte, offset int64) (int, error) {
	return inPieces(b, func(at int, piece []byte) error {
		return c.request(nbdWrite, offset+int64(at), int64(len(piece)), piece, nil)
	})
}

func inPieces(b []byte, do func(at int, piece []byte) error) (int, error) {
	for at := 0; at < len(b); at += nbdLargest {
		if err := do(at, b[at:min(at+nbdLargest, len(b))]); err != nil {
			return at, err
		}
	}
	return len(b), nil
}

// Flush makes acknowledged writes durable.
func (c *nbdClient) Flush() error { return c.request(nbdFlush, 0, 0, nil, nil) }

// Zero makes a range read as zeros.
func (c *nbdClient) Zero(offset, n int64) error {
	return c.request(nbdWriteZeroes, offset, n, nil, nil)
}

// Discard gives a range up.
func (c *nbdClient) Discard(offset, n int64) error { return c.request(nbdTrim, offset, n, nil, nil) }

// disconnect says goodbye; there is no reply to it.
func (c *nbdClient) disconnect() error {
	_, err := c.conn.Write(nbdHeader(nbdDisconnect, 0, 0))
	return errors.Join(err, c.conn.Close())
}
