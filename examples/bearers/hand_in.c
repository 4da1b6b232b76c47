/*
 * For a library of a vendor that calls a function for each push: hand_in() gives one to a door of dmnotid.
 *
 *     hand_in("/run/dmnotid-doors/push.sock", octets, length);       a Push PDU, as an SMS to port 2948 carries it
 *     hand_in("/run/dmnotid-doors/package.sock", octets, length);    a package alone
 *
 * It returns 0, or -1 with errno. It waits while the queue of the door is full. The process must be in the group dmnotid-doors.
 */
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int hand_in(const char *path, const void *octets, size_t length)
{
    struct sockaddr_un door = {.sun_family = AF_UNIX};
    strncpy(door.sun_path, path, sizeof door.sun_path - 1);
    int sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    ssize_t sent = sendto(sock, octets, length, 0, (struct sockaddr *)&door, sizeof door);
    close(sock);
    return sent < 0 ? -1 : 0;
}
