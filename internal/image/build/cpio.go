package build

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// cpioWriter writes an initial RAM file system: the "newc" form of the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst. Everything in it belongs to root.
type cpioWriter struct {
	w     *bufio.Writer
	at    int64
	inode int
	err   error
}

func newCPIO(w io.Writer) *cpioWriter { return &cpioWriter{w: bufio.NewWriterSize(w, 1<<20)} }

func (c *cpioWriter) write(p []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(p)
		c.at += int64(len(p))
	}
}

func (c *cpioWriter) pad() {
	c.write(make([]byte, -c.at&3))
}

// add writes one entry. mode is that of stat(2); data is a file's content or a link's target.
func (c *cpioWriter) add(name string, mode uint32, data []byte) {
	c.entry(name, mode, 0, 0, data)
}

// addDevice writes a device node.
func (c *cpioWriter) addDevice(name string, mode, major, minor uint32) {
	c.entry(name, mode, major, minor, nil)
}

func (c *cpioWriter) entry(name string, mode, major, minor uint32, data []byte) {
	c.inode++
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		c.inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0)
	c.write([]byte(header + name + "\x00"))
	c.pad()
	c.write(data)
	c.pad()
}

// addTree writes a directory's content.
func (c *cpioWriter) addTree(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		var data []byte
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err = os.ReadFile(path)
		case unix.S_IFLNK:
			var target string
			target, err = os.Readlink(path)
			data = []byte(target)
		}
		c.add(name, st.Mode, data)
		return err
	})
}

// addFile writes a copy of a file under another name.
func (c *cpioWriter) addFile(name, path string) error {
	data, err := os.ReadFile(path)
	c.add(name, unix.S_IFREG|0o644, data)
	return err
}

// close ends the archive.
func (c *cpioWriter) close() error {
	c.add("TRAILER!!!", 0, nil)
	if c.err != nil {
		return c.err
	}
	return c.w.Flush()
}
