// Package lab holds the tests that run in the lab guest (scripts/lab.sh): a host as users have it, with working KVM, pure
// cgroup v2 under systemd and Debian's own kernel, on which Croft is installed from its package.
//
// They are one story in three parts, told by guest.sh: Croft is installed, servers of every engine run, and outlive what
// happens to the daemon; the host reboots, and what should run comes up again; Croft is removed, and nothing is left.
package lab
